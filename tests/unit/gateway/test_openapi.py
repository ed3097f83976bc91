"""The OpenAPI document: every route, every status, and nothing that no route has; and the page that shows it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from llmlb.bus import errors
from llmlb.router.gateway import http_errors, openapi
from llmlb.router.gateway.openapi_entry import TAGS
from llmlb.router.gateway.openapi_errors import EVERYWHERE, NO_ROUTE, all_statuses
from llmlb.router.gateway.openapi_routes import ENTRIES
from tests.unit.gateway.auth_rig import Rig, far, rig_of

ROLES = ("router", "node")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("openapi")
    return {role: openapi.document(Rig(role, home).app) for role in ROLES}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


# The table


def test_every_route_is_documented_and_nothing_else_is(tmp_path: Path) -> None:
    found = [one for role in ROLES for one in openapi.operations(Rig(role, tmp_path).app)]
    names = {one.name for one in found}
    assert names - set(ENTRIES) == set(), "router/gateway/openapi_routes.py lacks these"
    assert set(ENTRIES) - names == set(), "router/gateway/openapi_routes.py has these, and no route does"
    silent = {one.name for one in found if not (one.handler.__doc__ or "").strip()}
    assert not silent, "a handler without a docstring"
    assert {entry.tag for entry in ENTRIES.values()} <= set(TAGS) - {"Undocumented"}


def test_a_route_that_is_not_in_the_table_does_not_take_the_document_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ENTRIES, "operations.health")
    document = openapi.document(Rig("router", tmp_path).app)
    assert document["paths"]["/health"]["get"]["tags"] == ["Undocumented"]


@pytest.mark.parametrize("role", ROLES)
def test_every_field_of_a_request_and_every_parameter_says_what_it_is(documents: dict[str, Any], role: str) -> None:
    document = documents[role]
    schemas = document["components"]["schemas"]
    silent = []
    for name, operation in operations(document):
        for parameter in operation["parameters"]:
            if "$ref" not in parameter and not parameter["description"]:
                silent.append(f"{name}: {parameter['name']}")
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body is not None:
            fields = schemas[body["$ref"].rpartition("/")[2]]["properties"]
            silent += [f"{name}: {field}" for field, schema in fields.items() if not schema.get("description")]
    assert not silent


# Statuses


def test_every_status_that_an_error_maps_to_is_documented_somewhere(documents: dict[str, Any]) -> None:
    used = {int(status) for one in documents.values() for _, it in operations(one) for status in it["responses"]}
    assert set(all_statuses()) - NO_ROUTE - used == set()


@pytest.mark.parametrize("role", ROLES)
def test_what_the_http_server_refuses_by_itself_is_documented_on_every_route(
    documents: dict[str, Any], role: str
) -> None:
    for name, operation in operations(documents[role]):
        public = operation["security"] == []
        missing = ({500, *EVERYWHERE} | (set() if public else {401, 403})) - set(map(int, operation["responses"]))
        assert not missing, name


def test_every_code_of_every_error_is_in_the_document_of_a_router(documents: dict[str, Any]) -> None:
    texts = " ".join(one["description"] for one in documents["router"]["components"]["responses"].values())
    missing = [cls.reason for cls in errors.BY_REASON.values() if f"`{cls.reason}`" not in texts]
    assert not missing
    for status, (_, code, _) in http_errors.SANIC.items():
        assert status in NO_ROUTE or f"`{code}`" in texts


# The document itself


@pytest.mark.parametrize("role", ROLES)
def test_the_document_in_the_repository_is_the_one_the_code_makes(role: str) -> None:
    file = ROOT / "docs" / ("openapi.json" if role == "router" else "openapi.node.json")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_openapi.py"), "--print", role], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.read_text(), "run: make docs"


@pytest.mark.parametrize("role", ROLES)
def test_every_reference_leads_somewhere_and_every_schema_is_one(documents: dict[str, Any], role: str) -> None:
    document = documents[role]
    for reference in set(openapi._references(document)):
        at: Any = document
        for name in reference.removeprefix("#/").split("/"):
            at = at[name]
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    for name, operation in operations(document):
        asked = {one["name"] for one in operation["parameters"] if one.get("in") == "path"}
        assert asked == set(re.findall(r"\{(\w+)\}", name)), name


@pytest.mark.parametrize("role", ROLES)
def test_an_example_is_what_its_schema_takes(documents: dict[str, Any], role: str) -> None:
    document = documents[role]
    with_example = 0
    for name, schema in document["components"]["schemas"].items():
        whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        for example in schema.get("examples", ()):
            jsonschema_rs.validator_for(whole).validate(example)
            with_example += 1
    assert with_example >= 8


def test_credentials_are_those_of_the_rules(documents: dict[str, Any]) -> None:
    paths = documents["router"]["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert {"session": []} in paths["/v1/models"]["get"]["security"]
    assert {"session": [], "csrf": []} in paths["/v0/keys"]["post"]["security"]
    assert "`inference`" in paths["/v1/chat/completions"]["post"]["description"]
    assert "admins, and API keys" in paths["/v0/keys"]["post"]["description"]


def test_streams_have_their_events(documents: dict[str, Any]) -> None:
    paths = documents["node"]["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        content = paths[path]["post"]["responses"]["200"]["content"]
        data = content["text/event-stream"]["schema"]["properties"]["data"]
        assert len(data.get("anyOf", [data])[0]["contentSchema"]["anyOf"]) > 1


def test_anthropics_routes_have_anthropics_errors(documents: dict[str, Any]) -> None:
    document = documents["router"]
    for path, item in document["paths"].items():
        for operation in item.values():
            ours = [one["$ref"].rpartition("/")[2] for code, one in operation["responses"].items() if int(code) >= 400]
            anthropic = path.startswith("/v1/messages")
            assert all(name.startswith("Anthropic" if anthropic else "Error") for name in ours), path


# Over HTTP


@pytest.mark.parametrize("role", ROLES)
async def test_both_gateways_serve_their_own_document_and_the_page(tmp_path: Path, role: str) -> None:
    async with rig_of(tmp_path, role) as (_, client):
        document = (await client.get("/openapi.json")).json()
        assert ("/v0/nodes" in document["paths"]) is (role == "router")
        assert ("/v0/ps" in document["paths"]) is (role == "node")
        assert (await client.get("/openapi.json")).json() == document
        page = await client.get("/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_but_its_own(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (_, client):
        page = (await client.get("/docs")).text
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert ".op" in style
    assert "url(" not in style
    assert "@import" not in style
    assert "innerHTML" not in page
    assert page.count("<script>") == page.count("<style>") == 1


async def test_strangers_see_neither_the_document_nor_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far(monkeypatch)
    async with rig_of(tmp_path) as (rig, client):
        for path in ("/openapi.json", "/docs"):
            assert (await client.get(path)).status_code == 401
            key = {"Authorization": f"Bearer {rig.directory.put_key('logs')}"}
            assert (await client.get(path, headers=key)).status_code == 200


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that a document is made for from now on."""
    made: list[Any] = []
    inner = openapi.document

    def document(app: Any) -> dict[str, Any]:
        made.append(app)
        return inner(app)

    monkeypatch.setattr(openapi, "document", document)
    return made


async def test_many_who_ask_at_once_get_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig_of(tmp_path) as (_, client):
        made = counted(monkeypatch)
        answers: list[httpx.Response] = await asyncio.gather(*(client.get("/openapi.json") for _ in range(8)))
        assert len({answer.content for answer in answers}) == 1
        assert len(made) == 1
