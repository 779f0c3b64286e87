"""The Merkle tree: reference vectors, a naive second implementation, and forged proofs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import merkle

# RFC 6962 / Certificate Transparency test vectors: eight leaves and the roots of the first one to eight of them.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
CT_ROOTS = [
    bytes.fromhex(text)
    for text in [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
]
CT_INCLUSION_0_OF_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
CT_CONSISTENCY = {
    (1, 8): CT_INCLUSION_0_OF_8,
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
SMALL = 20


def grow(leaves: Sequence[bytes]) -> merkle.NodeReader:
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    for size, content in enumerate(leaves):
        for level, index, value in merkle.append(size, merkle.leaf_hash(content), read):
            assert (level, index) not in nodes
            nodes[level, index] = value
    return read


def naive_split(leaves: Sequence[bytes]) -> int:
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return split


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = naive_split(leaves)
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    k = naive_split(leaves)
    if index < k:
        return [*naive_path(index, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(index - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(first: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """RFC 6962, 2.1.2, word for word."""
    if first == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = naive_split(leaves)
    if first <= k:
        return [*naive_subproof(first, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(first - k, leaves[k:], False), naive_root(leaves[:k])]


LEAVES = [bytes([number]) * number for number in range(SMALL)]
READ = grow(LEAVES)
ROOTS = [naive_root(LEAVES[:size]) for size in range(SMALL + 1)]
HASHES = [merkle.leaf_hash(content) for content in LEAVES]


def forgeries(proof: list[bytes]) -> list[list[bytes]]:
    """Every proof one step away: a hash dropped, doubled, swapped, changed, or cut short by a byte."""
    out = [proof[:i] + proof[i + 1 :] for i in range(len(proof))]
    out += [[*proof, merkle.EMPTY_ROOT], [merkle.EMPTY_ROOT, *proof]]
    for i, step in enumerate(proof):
        out.append([*proof[:i], step, *proof[i:]])
        out.append([*proof[:i], bytes([step[0] ^ 1]) + step[1:], *proof[i + 1 :]])
        out.append([*proof[:i], step[:-1], *proof[i + 1 :]])
        if i:
            out.append([*proof[: i - 1], step, proof[i - 1], *proof[i + 1 :]])
    return out


def test_a_forged_inclusion_proof_is_refused() -> None:
    for size in range(1, SMALL + 1):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, READ)
            for forged in forgeries(proof):
                assert not merkle.inclusion_holds(HASHES[index], index, size, forged, ROOTS[size])


def test_an_inclusion_proof_holds_for_no_other_leaf_place_or_root() -> None:
    for size in range(1, SMALL + 1):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, READ)
            for other in range(-1, SMALL + 1):
                if other != index:
                    assert not merkle.inclusion_holds(HASHES[index], other, size, proof, ROOTS[size])
                if other != index and 0 <= other < SMALL:
                    assert not merkle.inclusion_holds(HASHES[other], index, size, proof, ROOTS[size])
                if other != size and other >= 0:
                    assert not merkle.inclusion_holds(HASHES[index], index, size, proof, ROOTS[other])


def test_bytes_moved_between_leaf_and_proof_are_refused() -> None:
    proof = merkle.inclusion_proof(0, 2, READ)
    joined = HASHES[0] + proof[0]
    assert merkle.node_hash(joined[:33], joined[33:]) == ROOTS[2]
    assert not merkle.inclusion_holds(joined[:33], 0, 2, [joined[33:]], ROOTS[2])


def test_an_inner_node_is_not_a_leaf() -> None:
    pair = HASHES[0] + HASHES[1]
    assert not merkle.inclusion_holds(merkle.leaf_hash(pair), 0, 1, [], ROOTS[2])


def test_a_forged_consistency_proof_is_refused() -> None:
    for second in range(1, SMALL + 1):
        for first in range(1, second + 1):
            proof = merkle.consistency_proof(first, second, READ)
            for forged in forgeries(proof):
                assert not merkle.consistency_holds(first, second, ROOTS[first], ROOTS[second], forged)


def test_a_consistency_proof_holds_for_no_other_tree() -> None:
    for second in range(1, SMALL + 1):
        for first in range(1, second + 1):
            proof = merkle.consistency_proof(first, second, READ)
            for other in range(SMALL + 1):
                if other != first:
                    assert not merkle.consistency_holds(first, second, ROOTS[other], ROOTS[second], proof)
                    assert not merkle.consistency_holds(other, second, ROOTS[other], ROOTS[second], proof)
                if other != second:
                    assert not merkle.consistency_holds(first, second, ROOTS[first], ROOTS[other], proof)


def test_nothing_is_proved_about_an_empty_tree() -> None:
    assert not merkle.inclusion_holds(HASHES[0], 0, 0, [], merkle.EMPTY_ROOT)
    assert not merkle.consistency_holds(0, 2, merkle.EMPTY_ROOT, ROOTS[2], [HASHES[0]])
    assert not merkle.consistency_holds(2, 1, ROOTS[2], ROOTS[1], [HASHES[0]])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_a_leaf_that_is_not_there_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_proof(index, size, READ)


@pytest.mark.parametrize(("first", "second"), [(0, 3), (4, 3), (-1, 3)])
def test_a_tree_that_does_not_grow_has_no_consistency_proof(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="no proof leads"):
        merkle.consistency_proof(first, second, READ)


def test_the_roots_are_those_of_the_reference_vectors() -> None:
    read = grow(CT_LEAVES)
    assert [merkle.root(size, read) for size in range(9)] == CT_ROOTS


def test_the_proofs_are_those_of_the_reference_vectors() -> None:
    read = grow(CT_LEAVES)
    assert [step.hex() for step in merkle.inclusion_proof(0, 8, read)] == CT_INCLUSION_0_OF_8
    for (first, second), expected in CT_CONSISTENCY.items():
        proof = merkle.consistency_proof(first, second, read)
        assert [step.hex() for step in proof] == expected
        assert merkle.consistency_holds(first, second, CT_ROOTS[first], CT_ROOTS[second], proof)


def test_every_small_tree_agrees_with_the_naive_one_and_its_proofs_hold() -> None:
    for size in range(1, SMALL + 1):
        assert merkle.root(size, READ) == ROOTS[size]
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, READ)
            assert proof == naive_path(index, LEAVES[:size])
            assert merkle.inclusion_holds(HASHES[index], index, size, proof, ROOTS[size])
        for first in range(1, size + 1):
            proof = merkle.consistency_proof(first, size, READ)
            assert proof == naive_subproof(first, LEAVES[:size], True)
            assert merkle.consistency_holds(first, size, ROOTS[first], ROOTS[size], proof)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=200), st.data())
def test_larger_trees_agree_with_the_naive_one(leaves: list[bytes], data: st.DataObject) -> None:
    read = grow(leaves)
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    assert merkle.root(size, read) == naive_root(leaves)
    assert merkle.inclusion_proof(index, size, read) == naive_path(index, leaves)
    assert merkle.consistency_proof(index + 1, size, read) == naive_subproof(index + 1, leaves, True)
