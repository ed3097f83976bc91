from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from llmlb.bus.errors import Conflict, InvalidRequest, PullFailed
from llmlb.node.pull.partial import Partial
from llmlb.node.store.bundled import BundledSource
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.store.manifest import read_manifest
from tests.unit.node.installed_files import ONE, REPO, SHARDS, TENSORS, TWO, catalog, names
from tests.unit.node.store_files import COMMIT, gguf, planned, pull, sha256, stage


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


def test_a_repo_in_another_case_is_the_folder_that_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, REPO, ONE)
    assert store.is_installed(planned(REPO.upper(), ONE)) == REPO
    assert pull(store, f"{REPO.lower()}:Q8_0", TWO).name == f"{REPO}:Q8_0"
    assert [each.name for each in tmp_path.iterdir() if not each.name.startswith(".")] == [REPO.split("/")[0]]
    assert [each.name for each in (tmp_path / REPO).parent.iterdir()] == [REPO.split("/")[1]]


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


def test_a_new_owner_is_on_the_disk_before_the_journal_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []

    def sync_folder(folder: Path) -> None:
        synced.append(folder)

    monkeypatch.setattr("llmlb.node.store.files.sync_folder", sync_folder)
    pull(Store(tmp_path / "models"), REPO, ONE)
    owner = (tmp_path / "models" / REPO).parent
    assert owner in synced, "the model's folder is in it"
    assert owner.parent in synced


def test_a_file_that_is_renamed_while_leftovers_are_counted_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    todo = planned(REPO, ONE)
    stage(store, todo, ONE)
    part = store.staging(todo) / "x.gguf.part"
    part.write_bytes(b"x")
    real = Path.is_file

    def renamed_meanwhile(path: Path) -> bool:
        there = real(path)
        if path == part:
            part.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", renamed_meanwhile)
    (left,) = store.leftovers()
    assert left.repo == REPO
