from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from llmlb.bus.errors import Conflict, Forbidden, InvalidRequest, PullFailed
from llmlb.node.pull.partial import Partial
from llmlb.node.store import moving
from llmlb.node.store.bundled import BundledSource
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Leftover, Store
from llmlb.node.store.local import LocalSource
from llmlb.node.store.manifest import read_manifest
from tests.unit.node.store_files import COMMIT, gguf, planned, pull, safetensors, sha256, stage, tree

REPO = "meta-llama/Llama-3.2-3B-Instruct"
ONE = {"Llama-3.2-3B-Instruct-Q4_K_M.gguf": gguf()}
TWO = {**ONE, "Llama-3.2-3B-Instruct-Q8_0.gguf": gguf(file_type=7)}
SHARDS = {f"big-Q4_K_M-{n:05}-of-00003.gguf": gguf(tensors=((n, 10),)) for n in (1, 2, 3)}
SEEING = {"m-Q4_K_M.gguf": gguf(), "m-Q8_0.gguf": gguf(file_type=7), "mmproj-F16.gguf": gguf(salt="eye")}
TENSORS = {
    "config.json": b'{"model_type": "llama", "torch_dtype": "bfloat16", "max_position_embeddings": 4096}',
    "model-00001-of-00002.safetensors": safetensors(a=("BF16", [10, 10])),
    "model-00002-of-00002.safetensors": safetensors(b=("BF16", [7])),
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "LICENSE": b"\n   Apache License\nVersion 2.0",
}


def catalog(root: Path) -> Catalog:
    return Catalog([LocalSource(root)])


def names(root: Path) -> list[str]:
    return [model.name for model in catalog(root).models()]


def test_a_pulled_model_is_found_by_its_name_its_quantization_and_its_alias(tmp_path: Path) -> None:
    installed = pull(Store(tmp_path), REPO, ONE)
    assert (installed.name, installed.alias) == (REPO, "llama3.2-3b")
    found = catalog(tmp_path)
    model = found.resolve(REPO)
    assert found.resolve(f"{REPO}:Q4_K_M") == found.resolve("llama3.2-3b") == found.resolve("LLAMA3.2-3B") == model
    assert (model.info.source, model.info.readonly, model.info.quantization) == ("HuggingFace", False, "Q4_K_M")
    assert not (tmp_path / ".pulling").exists()


def test_the_manifest_says_where_it_is_from_without_credentials(tmp_path: Path) -> None:
    pull(Store(tmp_path), REPO, ONE, endpoint="https://user:secret@hub.example/x?token=1")
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    assert path.name == "manifest-Q4_K_M.json"
    value = orjson.loads(path.read_bytes())
    assert "secret" not in path.read_text()
    assert "token" not in path.read_text()
    assert (value["endpoint"], value["repo"], value["revision"]) == ("https://hub.example/x", REPO, COMMIT)
    (file,) = value["files"]
    assert (file["name"], file["sha256"]) == (next(iter(ONE)), sha256(next(iter(ONE.values()))))
    assert value["format"] == 1
    assert value["origins"] == ["user"]
    assert value["aliases"] == ["llama3.2-3b"]
    assert value["created_at"] > 1_700_000_000


def test_of_two_quantizations_each_has_its_own_name_and_the_plain_one_asks_which(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, f"{REPO}:Q4_K_M", TWO)
    second = pull(store, f"{REPO}:Q8_0", TWO)
    assert (second.name, second.alias) == (f"{REPO}:Q8_0", "llama3.2-3b-q8_0")
    assert names(tmp_path) == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"]
    found = catalog(tmp_path)
    with pytest.raises(Exception, match=f"name one: {REPO}:Q4_K_M, {REPO}:Q8_0"):
        found.resolve(REPO)
    with pytest.raises(Exception, match="name one"):
        found.resolve(REPO.lower())
    assert found.resolve("llama3.2-3b").info.name == f"{REPO}:Q4_K_M", "an alias stays with its model"
    assert found.resolve(f"{REPO}:q8_0").info.name == f"{REPO}:Q8_0"


def test_what_is_installed_is_known_by_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    todo = planned(REPO, ONE)
    assert store.is_installed(todo) is None
    pull(store, REPO, ONE)
    assert store.is_installed(todo) == REPO
    changed = {name: gguf(salt="x") for name in ONE}
    assert store.is_installed(planned(REPO, changed)) is None, "same name, other content"
    assert store.is_installed(planned(f"{REPO}:Q8_0", TWO)) is None
    (tmp_path / REPO / next(iter(ONE))).write_bytes(b"short")
    assert store.is_installed(todo) is None, "the file on the disk is not the one of the manifest"


def test_a_file_whose_digest_the_hub_does_not_tell_counts_by_its_size(tmp_path: Path) -> None:
    store = Store(tmp_path)
    todo = planned(REPO, ONE)
    stage(store, todo, ONE)
    store.install(todo, {}, origin="user", endpoint="http://x", taken_aliases=())
    assert store.is_installed(todo) == REPO


def test_origins_are_kept_and_added(tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = pull(store, REPO, ONE, origin="sync").name
    assert store.origins(name) == {"sync"}
    store.add_origin(name, "user")
    assert store.origins(f"{REPO}:Q4_K_M") == Store(tmp_path).origins(name) == {"sync", "user"}
    pull(store, f"{REPO}:Q8_0", TWO, origin="sync")
    assert store.origins(f"{REPO}:Q4_K_M") == {"sync", "user"}
    assert store.origins(f"{REPO}:Q8_0") == {"sync"}
    assert store.origins(REPO) == frozenset(), "which one?"
    store.remove_origin(f"{REPO}:Q4_K_M", "sync")
    assert store.origins(f"{REPO}:Q4_K_M") == {"user"}
    assert store.origins("nobody/nothing") == store.origins("../..") == store.origins("smollm2") == frozenset()


def test_a_new_revision_replaces_the_model_and_keeps_its_alias_and_origins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = pull(store, REPO, ONE, origin="sync", taken=("llama3.2-3b",))
    changed = {name: gguf(salt="newer") for name in ONE}
    second = pull(store, REPO, changed, revision="d" * 40)
    assert second == first
    assert first.alias == "llama3.2-3b-q4_k_m"
    assert store.origins(REPO) == {"user", "sync"}
    assert names(tmp_path) == [REPO]
    assert store.is_installed(planned(REPO, changed)) == REPO


def test_a_new_revision_in_fewer_shards_leaves_none_of_the_old_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    fewer = {"big-Q4_K_M-00001-of-00003.gguf": gguf(salt="a"), **dict(list(SHARDS.items())[1:])}
    pull(store, "o/big", fewer)
    assert names(tmp_path) == ["o/big"]
    assert len(list((tmp_path / "o/big").glob("*.gguf"))) == 3


def test_a_sharded_model_counts_the_weights_of_all_its_files(tmp_path: Path) -> None:
    pull(Store(tmp_path), "o/big", SHARDS)
    (model,) = catalog(tmp_path).models()
    assert model.parameters == 10 + 20 + 30
    assert model.size_bytes == sum(len(data) for data in SHARDS.values())


def test_a_safetensors_model_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/tensors", TENSORS)
    model = catalog(tmp_path).resolve("o/tensors")
    info = model.info
    assert (info.format, info.architecture, info.quantization) == ("Safetensors", "llama", "BF16")
    assert (info.parameters, info.context_length, model.license) == (107, 4096, "Apache License")
    assert store.is_installed(planned("o/tensors", TENSORS)) == "o/tensors"
    freed = store.remove(model)
    assert freed >= sum(len(data) for data in TENSORS.values())
    assert not (tmp_path / "o").exists()


def test_gguf_and_safetensors_of_one_repo_live_side_by_side(tmp_path: Path) -> None:
    store = Store(tmp_path)
    files = {**TENSORS, "m-Q4_K_M.gguf": gguf()}
    pull(store, "o/both", files)
    todo = planned("https://huggingface.co/o/both/blob/main/model-00001-of-00002.safetensors", files)
    store.install(todo, stage(store, todo, files), origin="user", endpoint="http://x", taken_aliases=())
    assert names(tmp_path) == ["o/both:Q4_K_M", "o/both:safetensors"]


def test_a_model_that_lost_a_file_is_reported_and_not_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    pull(store, REPO, ONE)
    (tmp_path / "o/big/big-Q4_K_M-00002-of-00003.gguf").unlink()
    found = catalog(tmp_path)
    assert [model.name for model in found.models()] == [REPO]
    assert "big-Q4_K_M-00002-of-00003.gguf is missing" in caplog.text
    with pytest.raises(Exception, match=r"broken: big-Q4_K_M-00002-of-00003\.gguf is missing; pull it again"):
        found.resolve("o/big")
    pull(store, "o/big", SHARDS)
    assert "o/big" in names(tmp_path)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": 99}', b'{"files": 7}']
)
def test_a_damaged_manifest_is_reported_and_its_model_is_used_without_it(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pull(Store(tmp_path), REPO, ONE)
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    path.write_bytes(damage)
    found = catalog(tmp_path)
    (model,) = found.models()
    assert (model.name, model.aliases, model.source) == (REPO, (), "Local")
    assert "manifest-Q4_K_M.json can't be used" in caplog.text
    found.rescan()
    assert caplog.text.count("can't be used") == 1
    assert Store(tmp_path).origins(REPO) == frozenset()


def test_a_manifest_of_a_newer_version_may_say_more(tmp_path: Path) -> None:
    pull(Store(tmp_path), REPO, ONE)
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    value = orjson.loads(path.read_bytes())
    value["new"] = {"deep": [1]}
    value["files"][0]["new"] = 1
    value["origins"].append("somebody")
    path.write_bytes(orjson.dumps(value))
    assert read_manifest(path).origins == ("user",)
    assert names(tmp_path) == [REPO]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "", "x\0y"])
def test_a_manifest_can_not_point_out_of_its_folder(tmp_path: Path, name: str) -> None:
    pull(Store(tmp_path), REPO, ONE)
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    value = orjson.loads(path.read_bytes())
    value["files"][0]["name"] = name
    path.write_bytes(orjson.dumps(value))
    with pytest.raises(ValueError, match="no file of a model"):
        read_manifest(path)


def test_what_lies_in_staging_is_no_model(tmp_path: Path) -> None:
    store = Store(tmp_path)
    todo = planned(REPO, ONE)
    stage(store, todo, ONE)
    assert names(tmp_path) == []
    (left,) = store.leftovers()
    assert left.repo == REPO
    assert left.bytes >= 512
    assert store.purge(REPO) == left.bytes
    assert store.leftovers() == []
    assert not (tmp_path / ".pulling").exists()


def test_purging_leaves_the_file_that_is_being_downloaded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.staging(planned(REPO, ONE))
    busy, idle = Partial(folder / "busy.gguf"), Partial(folder / "idle.gguf")
    for partial in (busy, idle):
        partial.open()
        partial.resume("etag", 300_000)
        partial.write(b"x" * 100, 0)
    idle.close()
    with pytest.raises(Conflict, match=r"busy\.gguf is being downloaded"):
        store.purge(REPO)
    assert sorted(path.name for path in folder.iterdir()) == ["busy.gguf.part", "busy.gguf.part.map"]
    busy.close()
    assert store.purge(REPO) > 0
    assert store.purge(REPO) == 0


@pytest.mark.parametrize("repo", ["..", "a", "../..", "a/../..", "a/b/c", "/etc/x", ".pulling/x", "a/.b", ""])
def test_only_a_repo_can_be_purged(tmp_path: Path, repo: str) -> None:
    with pytest.raises(InvalidRequest):
        Store(tmp_path / "models").purge(repo)


def test_a_file_that_is_missing_or_short_is_not_installed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    todo = planned("o/big", SHARDS)
    digests = stage(store, todo, SHARDS)
    last = store.staging(todo) / "big-Q4_K_M-00003-of-00003.gguf"
    data = last.read_bytes()
    for spoil in (lambda: last.write_bytes(data[:-1]), last.unlink):
        spoil()
        with pytest.raises(PullFailed, match=r"big-Q4_K_M-00003-of-00003\.gguf of o/big"):
            store.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
        assert names(tmp_path) == []
        assert not (tmp_path / "o").exists()


def test_what_is_no_gguf_inside_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match="does not begin with GGUF"):
        pull(Store(tmp_path), REPO, {"m-Q4_K_M.gguf": b"<html>" * 100})
    assert names(tmp_path) == []


def test_a_hand_placed_file_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "o/m"
    folder.mkdir(parents=True)
    mine = gguf(salt="mine, and longer")
    (folder / "m-Q4_K_M.gguf").write_bytes(mine)
    installed = pull(Store(tmp_path), "o/m", {"m-Q4_K_M.gguf": gguf()})
    assert (folder / "m-Q4_K_M.gguf").read_bytes() == mine
    assert (folder / "m-Q4_K_M-Q4_K_M.gguf").read_bytes() == gguf()
    assert len(names(tmp_path)) == 2
    assert installed.name in names(tmp_path)


def test_hand_placed_safetensors_are_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "o/tensors"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "mine"}')
    with pytest.raises(Conflict, match=r"another config\.json, which was not pulled: move it away"):
        pull(Store(tmp_path), "o/tensors", TENSORS)
    assert (folder / "config.json").read_text() == '{"model_type": "mine"}'


def test_files_of_the_same_name_from_two_folders_of_a_repo_do_not_replace_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    files = {"Q4_K_M/model.gguf": gguf(salt="four"), "Q8_0/model.gguf": gguf(file_type=7, salt="eight bits")}
    pull(store, "o/m:Q4_K_M", files)
    pull(store, "o/m:Q8_0", files)
    assert names(tmp_path) == ["o/m:Q4_K_M", "o/m:Q8_0"]
    assert store.is_installed(planned("o/m:Q4_K_M", files)) == "o/m:Q4_K_M"
    assert store.is_installed(planned("o/m:Q8_0", files)) == "o/m:Q8_0"


def test_an_alias_is_not_given_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    files = {"SmolLM2-Q4_1.gguf": gguf(file_type=3)}
    bundled = Catalog([BundledSource()])
    assert pull(store, "o/SmolLM2", files, taken=tuple(bundled.names())).alias == "smollm2-q4_1"
    assert pull(store, "p/SmolLM2", files).alias == "smollm2"
    assert pull(store, "q/smollm2", files).alias == "smollm2-q4_1-2", "the store's own are known without being told"
    assert len({model.aliases for model in catalog(tmp_path).models()}) == 3


# Crashes


class Killed(BaseException):
    """Stands for kill -9 at this place."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch, module: object, names: tuple[str, ...]) -> Callable[[], int]:
    """The ``number``th call of these functions does not happen, nor anything after it. Returns how many there were."""
    count = 0
    for name in names:
        real = getattr(module, name)

        def call(*args: object, _real: Callable[..., object] = real, **more: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return _real(*args, **more)

        monkeypatch.setattr(module, name, call)
    return lambda: count


@pytest.mark.parametrize("files", [ONE, SHARDS, TENSORS, SEEING], ids=["one", "shards", "safetensors", "projector"])
def test_an_installation_that_was_cut_off_anywhere_is_finished_or_was_not_begun(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("move", "sync_folder", "write_whole", "write_manifest")
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        todo = planned("o/m", files)
        digests = stage(store, todo, files)
        with monkeypatch.context() as patch:
            calls = kill_at(number, patch, moving, steps)
            try:
                store.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
            except Killed:
                pass
            else:
                assert calls() < number
                assert number > len(todo.files)
                return
        listed = names(root)
        assert listed in ([], ["o/m"])
        if listed:
            assert all((root / "o/m" / file.local).exists() for file in todo.files), "visible before it was whole"
        again = Store(root)
        name = again.is_installed(todo)
        if name is None:
            assert all((again.staging(todo) / file.local).exists() for file in todo.files), "nothing is lost"
            again.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
        assert catalog(root).resolve("o/m").info.source == "HuggingFace"
        assert again.leftovers() == []
        assert not (root / ".pulling").exists()
    pytest.fail("it never got through")


def test_a_replacement_that_was_cut_off_is_never_seen_as_half_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {name: gguf(tensors=((5, 5),), salt="newer") for name in SHARDS}
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        pull(store, "o/big", SHARDS)
        todo = planned("o/big", newer, "d" * 40)
        digests = stage(store, todo, newer)
        with monkeypatch.context() as patch:
            kill_at(number, patch, moving, ("move", "sync_folder", "write_whole", "write_manifest"))
            try:
                store.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
            except Killed:
                pass
            else:
                return
        listed = {model.parameters for model in catalog(root).models()}
        assert listed in (set(), {60}, {75})
        Store(root).recover()
        assert {model.parameters for model in catalog(root).models()} in ({60}, {75})
    pytest.fail("it never got through")


def test_a_removal_that_was_cut_off_anywhere_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        pull(store, "o/big", SHARDS)
        model = catalog(root).resolve("o/big")
        begun = False
        with monkeypatch.context() as patch:
            kill_at(number, patch, Path, ("unlink",))
            try:
                store.remove(model)
            except Killed:
                begun = True
        assert names(root) == [], "invisible from the first moment"
        Store(root).recover()
        assert not (root / "o").exists()
        if not begun:
            return
    pytest.fail("it never got through")


def test_a_model_that_is_pulled_again_after_a_removal_that_failed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    with monkeypatch.context() as patch:
        kill_at(2, patch, Path, ("unlink",))
        with pytest.raises(Killed):
            store.remove(catalog(tmp_path).resolve("o/big"))
    pull(store, "o/big", SHARDS)
    Store(tmp_path).recover()
    assert names(tmp_path) == ["o/big"]


def test_a_journal_whose_files_are_lost_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    todo = planned("o/big", SHARDS)
    stage(store, todo, SHARDS)
    staged = store.staging(todo)
    pull(Store(tmp_path / "other"), "o/big", SHARDS)
    manifest = read_manifest(tmp_path / "other/o/big/manifest-Q4_K_M.json")
    moving.begin_install(staged, manifest, {name: name for name in SHARDS}, [])
    (staged / "big-Q4_K_M-00002-of-00003.gguf").unlink()
    (staged / ".install-odd.json").write_bytes(b'{"moves": 7}')
    assert store.is_installed(todo) is None
    assert "is lost" in caplog.text
    assert names(tmp_path) == []
    assert moving.installs(staged) == []


def test_installing_works_where_the_owner_is_on_another_disk(tmp_path: Path) -> None:
    """An owner's folder may be a link; where there is a second file system, onto that."""
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    target = other / f"llmlb-test-{os.getpid()}-{tmp_path.name}"
    target.mkdir()
    try:
        (tmp_path / "models").mkdir()
        (tmp_path / "models/o").symlink_to(target)
        store = Store(tmp_path / "models")
        pull(store, "o/big", SHARDS)
        assert names(tmp_path / "models") == ["o/big"]
        assert len(list((target / "big").glob("*.gguf"))) == 3
        with pytest.raises(Forbidden, match="behind a link"):
            store.remove(catalog(tmp_path / "models").resolve("o/big"))
    finally:
        shutil.rmtree(target)


# Removing


def test_removing_frees_the_bytes_and_the_folders(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    freed = store.remove(catalog(tmp_path).resolve("o/big"))
    assert freed >= sum(len(data) for data in SHARDS.values())
    assert tree(tmp_path) == {}
    assert not (tmp_path / "o").exists()


def test_the_projector_goes_with_the_last_model_that_uses_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", SEEING)
    pull(store, "o/m:Q8_0", SEEING)
    found = catalog(tmp_path)
    assert found.resolve("o/m:Q4_K_M").projector == tmp_path / "o/m/mmproj-F16.gguf"
    store.remove(found.resolve("o/m:Q4_K_M"))
    assert sorted(tree(tmp_path)) == ["o/m/m-Q8_0.gguf", "o/m/manifest-Q8_0.json", "o/m/mmproj-F16.gguf"]
    store.remove(catalog(tmp_path).resolve("o/m"))
    assert tree(tmp_path) == {}


def test_what_is_not_the_models_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, REPO, ONE)
    (tmp_path / REPO / "notes.txt").write_text("mine")
    store.remove(catalog(tmp_path).resolve(REPO))
    assert tree(tmp_path) == {f"{REPO}/notes.txt": b"mine"}


def test_a_hand_placed_model_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "o/m"
    folder.mkdir(parents=True)
    for name, data in SHARDS.items():
        (folder / name).write_bytes(data)
    store = Store(tmp_path)
    assert store.origins("o/m") == frozenset()
    assert store.remove(catalog(tmp_path).resolve("o/m")) == sum(len(data) for data in SHARDS.values())
    assert not folder.exists()


def test_a_link_to_a_model_is_removed_and_the_model_stays(tmp_path: Path) -> None:
    real = tmp_path / "real.gguf"
    real.write_bytes(gguf())
    folder = tmp_path / "models/o/m"
    folder.mkdir(parents=True)
    (folder / "m.gguf").symlink_to(real)
    store = Store(tmp_path / "models")
    assert store.remove(catalog(tmp_path / "models").resolve("o/m")) == 0
    assert real.exists()
    assert not folder.exists()


def test_a_read_only_model_is_not_removed(tmp_path: Path) -> None:
    model = Catalog([BundledSource()]).resolve("smollm2")
    with pytest.raises(Forbidden, match="'smollm2:135m-instruct-q4_1' is read-only: it belongs to Bundled"):
        Store(tmp_path).remove(model)
    assert model.path.exists()


def test_a_leftover_knows_its_repo(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.staging(planned(REPO, ONE))
    (store.staging(planned("o/big", SHARDS)) / "x.part").write_bytes(b"x" * 5000)
    (left,) = store.leftovers()
    assert left == Leftover("o/big", left.bytes)
    assert left.bytes >= 5000


# Broken ones


def test_what_is_broken_is_removed_and_what_another_model_uses_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", SEEING)
    pull(store, "o/m:Q8_0", SEEING)
    (tmp_path / "o/m/m-Q8_0.gguf").unlink()
    assert store.broken("o/m") is None, "that is the whole one's name"
    broken = store.broken("o/m:Q8_0")
    assert broken is not None
    store.remove_broken(broken)
    assert sorted(tree(tmp_path)) == ["o/m/m-Q4_K_M.gguf", "o/m/manifest-Q4_K_M.json", "o/m/mmproj-F16.gguf"]
    assert store.broken("o/m:Q8_0") is None


def test_a_hand_placed_model_that_is_broken_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "o/m"
    folder.mkdir(parents=True)
    for name, data in list(SHARDS.items())[:2]:
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("mine")
    store = Store(tmp_path)
    for name in ("o/m", "o/m:Q4_K_M"):
        assert store.broken(name) is not None
    broken = store.broken("o/m")
    assert broken is not None
    assert "1 of 3 files are missing" in broken.why
    assert store.remove_broken(broken) == sum(len(data) for data in list(SHARDS.values())[:2])
    assert list(tree(tmp_path)) == ["o/m/notes.txt"]


def test_a_damaged_manifest_without_a_model_can_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, REPO, ONE)
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    path.write_bytes(b"{")
    store.remove(catalog(tmp_path).resolve(REPO))
    broken = store.broken(REPO)
    assert broken is not None
    store.remove_broken(broken)
    assert tree(tmp_path) == {}


def test_of_two_broken_ones_the_repo_alone_names_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for quant in ("Q4_K_M", "Q8_0"):
        pull(store, f"o/m:{quant}", SEEING)
        (tmp_path / f"o/m/m-{quant}.gguf").unlink()
    assert store.broken("o/m") is None
    assert store.broken("o/m:Q4_K_M") is not None
    assert store.broken("../x") is None
    assert store.broken("ollama:x") is None


def test_what_is_broken_behind_a_link_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/m-Q4_K_M.gguf").write_bytes(b"no model")
    (tmp_path / "models/o").mkdir(parents=True)
    (tmp_path / "models/o/m").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "models")
    broken = store.broken("o/m")
    assert broken is not None
    with pytest.raises(Forbidden, match="behind a link"):
        store.remove_broken(broken)
