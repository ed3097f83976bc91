"""From what an administrator names to a registration with its manifest: the hub is asked, nothing is downloaded."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llmlb.bus.errors import HubUnavailable, InvalidRequest, NotFound, PullFailed
from llmlb.bus.hub_manifest import manifest_of
from llmlb.bus.hub_names import Wanted, parse_name
from llmlb.bus.hub_plan import Plan, RepoFile, plan, variants
from llmlb.bus.messages.hub import RegisterModel
from llmlb.bus.messages.models import RegisteredModel
from llmlb.router.hub import fit
from llmlb.router.hub.answers import Repository, as_json, repository_of
from llmlb.router.hub.cache import Cache
from llmlb.router.hub.client import HubClient
from llmlb.router.hub.fit import Room
from llmlb.router.hub.shown import tag_of

log = logging.getLogger("llmlb.router.hub.registration")

ENGINES = {"GGUF": "llama.cpp", "Safetensors": "vllm"}
MOST_NAMED = 30
"""Files named in an error."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What would be stored, and what to warn of."""

    record: RegisteredModel
    warnings: tuple[str, ...]


class Registrar:
    """Makes registrations. Its method raises what it says, and HubUnavailable."""

    def __init__(self, client: HubClient, cache: Cache) -> None:
        self._client, self._cache = client, cache

    async def draft(self, ask: RegisterModel, nodes: tuple[str, ...] | None, rooms: Sequence[Room]) -> Draft:
        """``nodes``: ids of those it is meant for; ``rooms``: the approved ones of them.

        Raises InvalidRequest, ModelUnknown (no such repository), NotFound (no such file or quantization), Forbidden,
        Unauthenticated.
        """
        wanted = _wanted(ask, self._client.endpoint)
        if ask.chat_template is not None:
            await asyncio.to_thread(_check_template, ask.chat_template)
        repo, notes = await self._look(wanted)
        if repo.gated:
            notes.append(f"{repo.id} is gated: each node needs HF_TOKEN of an account that accepted its terms")
        owner, _, model = repo.id.partition("/")  # as the hub spells it
        chosen = dataclasses.replace(wanted, owner=owner, model=model)
        planned = _plan(chosen, repo)
        pending = planned is None or not _has_engine(planned.format, rooms)
        name, file = _name(planned, repo)
        size = 0 if planned is None else planned.total_bytes
        required = fit.required_bytes(size, repo.parameters)
        if pending:
            notes.append("no engine of the cluster runs this format: it waits for conversion, and is not downloaded")
        else:
            assert planned is not None
            notes += fit.warnings(size, required, ENGINES[planned.format], rooms)
        record = RegisteredModel(
            name=name,
            file=file,
            # A node of an older version knows nothing of conversions: for it, too, it is meant for nobody.
            nodes=() if pending else nodes,
            registered_at=time.time(),
            registered_by=ask.registered_by,
            manifest=None if planned is None else manifest_of(planned, repo.id),
            display_name=ask.display_name,
            aliases=tuple(dict.fromkeys(ask.aliases)),
            chat_template=ask.chat_template,
            context_length=repo.context_length,
            required_memory_bytes=required if size else None,
            conversion_pending=pending,
            warnings=tuple(notes),
        )
        return Draft(record, tuple(notes))

    async def _look(self, wanted: Wanted) -> tuple[Repository, list[str]]:
        """The repository now, or what the hub said of it before when it does not answer."""
        key = f"head {wanted.repo.lower()} {wanted.revision}"
        try:
            found = await self._client.repository(wanted)
        except HubUnavailable as error:
            kept = await self._cache.get(key)
            repo = None if kept is None else repository_of(kept.value)
            if kept is None or repo is None or repo.commit is None:
                raise
            log.warning("registered_from_cache repo=%s age_s=%.0f", repo.id, kept.age_s)
            return repo, [
                f"{error.message.removesuffix('; try again later')}: this is what it said "
                f"{kept.age_s / 60:.0f} minutes ago"
            ]
        if found.commit is None:
            raise HubUnavailable(f"the hub names no commit of {wanted.repo}; try again later")
        await self._cache.put(key, as_json(found))
        return found, []


def _check_template(text: str) -> None:
    """Raises InvalidRequest: it is no Jinja. Parsed, never run."""
    import jinja2

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except (jinja2.TemplateError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise InvalidRequest(f"chat_template is not a template: {why}", param="chat_template") from error


def _wanted(ask: RegisterModel, endpoint: str) -> Wanted:
    wanted = parse_name(ask.repo, endpoint)
    if ask.filename is None:
        return wanted
    if wanted.file is not None and wanted.file != ask.filename:
        raise InvalidRequest("repo is the address of another file than filename", param="filename")
    if wanted.quant is not None:
        raise InvalidRequest("give a quantization in repo or a filename, not both", param="filename")
    return Wanted(wanted.owner, wanted.model, file=ask.filename, revision=wanted.revision)


def _plan(wanted: Wanted, repo: Repository) -> Plan | None:
    """None: there are weights in it, but in a form that nothing here can run. Raises NotFound, InvalidRequest."""
    paths = {file.path for file in repo.files}
    if wanted.file is not None and wanted.file not in paths:
        there = _some(file.path for file in repo.files if file.path.lower().endswith((".gguf", ".safetensors")))
        raise NotFound(f"{repo.id} has no file {wanted.file}; it has {there}", param="filename")
    if any(file.size < 0 for file in repo.files):
        raise HubUnavailable(f"the hub does not tell the sizes of the files of {repo.id}; try again later")
    try:
        return plan(wanted, repo.files, repo.commit or "")
    except PullFailed as error:
        if wanted.quant is not None and variants(repo.files):
            raise NotFound(error.message, param="repo") from error
        if wanted.file is None and wanted.quant is None and _has_other_weights(repo.files):
            return None
        param = "filename" if wanted.file is not None else "repo"
        raise InvalidRequest(error.message, param=param) from error


def _some(paths: object) -> str:
    found = sorted(paths)  # type: ignore[call-overload]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return (", ".join(found[:MOST_NAMED]) or "no model files") + more


def _has_other_weights(files: Sequence[RepoFile]) -> bool:
    return any(file.path.lower().endswith((".bin", ".pt", ".pth", ".safetensors", ".onnx")) for file in files)


def _has_engine(format: str, rooms: Sequence[Room]) -> bool:
    """GGUF is run by every node; for other formats a node has to say so."""
    return format == "GGUF" or any(room.runs(ENGINES[format]) for room in rooms)


def _name(planned: Plan | None, repo: Repository) -> tuple[str, str | None]:
    """One name for one variant, however it was asked for; and its file, where the name alone would not say it."""
    if planned is None or planned.format != "GGUF":
        return repo.id, None  # a node goes by the repository, and its manifest says which files
    found = variants(repo.files)
    first = planned.files[0].path
    mine = next(each for each in found if first in {file.path for file in each.files})
    tag = tag_of(mine, found)
    name = f"{repo.id}:{tag}"
    try:
        parse_name(name)
    except InvalidRequest as error:
        raise InvalidRequest(f"the file {first} can't be part of a model's name: {error.message}") from error
    return name, None if tag == mine.label else first
