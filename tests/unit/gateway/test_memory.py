"""What the allocator keeps for the next body."""

from __future__ import annotations

import ctypes
import platform

import pytest

from llmlb.router.gateway import memory


def test_glibc_takes_the_options_and_others_are_left_alone() -> None:
    assert memory.keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_a_library_without_them_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory()
