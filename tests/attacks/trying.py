"""How a way is tried: it must end in its refusal, or in nothing planted among what was carried."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from attacks.lab import NOT_STOPPED, LocalLab, Way, person, planted_in, ways_in
from fabric.errors import FabricError


def trials(module: ModuleType) -> Callable[..., None]:
    """Return one test per way of a module that something stops, named after it."""
    stopped = [way for way in ways_in(vars(module)) if way.wall != NOT_STOPPED]

    @pytest.mark.parametrize("way", stopped, ids=lambda way: way.id)
    def tried(lab: LocalLab, way: Way) -> None:
        try_way(lab, way)

    return tried


def limits(module: ModuleType) -> Callable[..., None]:
    """Return one test per way of a module that nothing stops: if one is stopped one day, the list must say so."""
    open_ones = [way for way in ways_in(vars(module)) if way.wall == NOT_STOPPED]

    @pytest.mark.parametrize("way", open_ones, ids=lambda way: way.id)
    def tried(lab: LocalLab, way: Way) -> None:
        way(lab)

    return tried


def try_way(lab: LocalLab, way: Way) -> None:
    """Try one way."""
    row = person(lab)
    if way.by:
        with pytest.raises(FabricError) as caught:
            way(lab)
        assert caught.value.reason in way.by, str(caught.value)
        assert planted_in([str(caught.value).encode(), repr(caught.value).encode()], row) == []
        assert caught.value.__cause__ is None
    else:
        way(lab)
    assert planted_in(lab.carried, row) == []
