"""Signed notes and checkpoints: the reference vector of Go's sumdb, round trips, and every byte changed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import EvidenceInvalid, InvalidInput, Reason
from fabric.merkle import EMPTY_ROOT
from fabric.notes import Checkpoint, key_id, open_checkpoint, open_note, sign_checkpoint, sign_note
from fabric.statements import PublicKey, SigningKey

# golang.org/x/mod/sumdb/note, example_test.go.
GO_NAME = "PeterNeumann"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
GO_NOTE = f"{GO_TEXT}\n— {GO_NAME} {GO_SIGNATURE}\n"
GO_KEY = PublicKey(base64.b64decode(GO_VKEY.split("+", 2)[2])[1:])

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))
ROOT = bytes(range(32, 64))
NOTE = sign_checkpoint(ORIGIN, 7, ROOT, KEY)


def refused(note: str, *keys: PublicKey, origin: str = ORIGIN) -> Reason:
    with pytest.raises(EvidenceInvalid) as caught:
        open_checkpoint(note, origin, keys or [KEY.public])
    return caught.value.reason


def test_a_note_that_no_trusted_key_signed_is_refused() -> None:
    assert refused(NOTE, OTHER.public) is Reason.KEY_UNKNOWN
    with pytest.raises(EvidenceInvalid, match="no trusted key"):
        open_checkpoint(NOTE, ORIGIN, [])


def test_a_checkpoint_of_another_log_is_refused() -> None:
    assert refused(NOTE, origin="fabric.example/other") is Reason.EVIDENCE_INVALID


def test_a_signature_under_another_name_is_not_the_logs() -> None:
    text = NOTE.split("\n\n")[0] + "\n"
    assert refused(sign_note(text, "someone.else", KEY)) is Reason.KEY_UNKNOWN


def test_a_signature_moved_under_another_name_is_not_the_logs() -> None:
    assert refused(NOTE.replace(f"— {ORIGIN}", "— someone.else")) is Reason.KEY_UNKNOWN


@pytest.mark.parametrize("character", ["\t", "\x00", "\r", "\x7f"])
def test_a_text_with_control_characters_is_refused_even_when_signed(character: str) -> None:
    text = f"{ORIGIN}{character}\n"
    line = base64.b64encode(key_id(ORIGIN, KEY.public) + KEY.sign(text.encode())).decode()
    with pytest.raises(EvidenceInvalid, match="malformed"):
        open_note(f"{text}\n— {ORIGIN} {line}\n", ORIGIN, [KEY.public])


def test_a_text_that_is_not_unicode_is_refused() -> None:
    assert refused(NOTE.replace("7", "\ud800")) is Reason.EVIDENCE_INVALID


def test_a_key_id_that_lies_is_refused() -> None:
    # The line claims the trusted key's id, but another key made the signature.
    text = NOTE.split("\n\n")[0] + "\n"
    forged = base64.b64encode(key_id(ORIGIN, KEY.public) + OTHER.sign(text.encode())).decode()
    assert refused(f"{text}\n— {ORIGIN} {forged}\n") is Reason.EVIDENCE_INVALID


def test_a_bad_signature_is_refused_even_beside_a_good_one() -> None:
    forged = base64.b64encode(key_id(ORIGIN, KEY.public) + bytes(64)).decode()
    assert refused(f"{NOTE}— {ORIGIN} {forged}\n") is Reason.EVIDENCE_INVALID


def test_a_signature_of_the_wrong_length_is_refused() -> None:
    for length in (0, 63, 65):
        forged = base64.b64encode(key_id(ORIGIN, KEY.public) + bytes(length)).decode()
        assert refused(f"{NOTE}— {ORIGIN} {forged}\n") is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        "text without a signature\n",
        NOTE[:-1],
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("— ", "- "),
        NOTE + "trailing\n",
        NOTE + "\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("7", "7\x00"),
        NOTE + "\ud800",
        NOTE + f"— {ORIGIN} AAA\n",
        NOTE + "— witness AAAA\n" * 100,
        NOTE + "— witness " + "A" * 65_536 + "\n",
    ],
)
def test_a_malformed_note_is_refused(note: str) -> None:
    assert refused(note, origin=note.partition("\n")[0]) is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n07\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n-7\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n٧\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n99999999999999999\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n7\n{base64.b64encode(ROOT[:-1]).decode()}\n",
        f"{ORIGIN}\n7\n{base64.b64encode(ROOT + b'x').decode()}\n",
        f"{ORIGIN}\n7\n{base64.b64encode(ROOT).decode()}\nextension\n",
    ],
)
def test_a_signed_note_that_is_no_checkpoint_is_refused(text: str) -> None:
    assert refused(sign_note(text, ORIGIN, KEY)) is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\ud800", "x" * 256])
def test_a_name_that_a_note_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        sign_checkpoint(name, 0, EMPTY_ROOT, KEY)
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\x7f\n", "a\ud800\n"])
def test_a_text_that_a_note_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        sign_note(text, ORIGIN, KEY)


def test_go_s_note_with_a_changed_text_is_refused() -> None:
    with pytest.raises(EvidenceInvalid, match="does not verify"):
        open_note(GO_NOTE.replace("cryptography", "cryptographY"), GO_NAME, [GO_KEY])


@given(st.integers(0, len(NOTE) - 1), st.characters())
def test_no_character_of_a_checkpoint_can_change_what_it_says(place: int, character: str) -> None:
    changed = NOTE[:place] + character + NOTE[place + 1 :]
    try:
        opened = open_checkpoint(changed, ORIGIN, [KEY.public])
    except EvidenceInvalid:
        return
    assert opened == Checkpoint(origin=ORIGIN, size=7, root=ROOT)


@given(st.text())
def test_any_text_at_all_is_refused_and_never_a_traceback(text: str) -> None:
    with pytest.raises(EvidenceInvalid):
        open_checkpoint(text, text.partition("\n")[0], [KEY.public])


def test_go_s_key_has_its_key_id_and_opens_its_note() -> None:
    assert key_id(GO_NAME, GO_KEY).hex() == GO_VKEY.split("+")[1]
    assert open_note(GO_NOTE, GO_NAME, [OTHER.public, GO_KEY]) == GO_TEXT


def test_go_s_private_key_signs_the_same_note() -> None:
    key = SigningKey.from_seed(base64.b64decode(GO_SKEY.split("+", 4)[4])[1:])
    assert sign_note(GO_TEXT, GO_NAME, key) == GO_NOTE


@given(st.integers(0, 10**15), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_says_what_was_signed(size: int, root: bytes) -> None:
    note = sign_checkpoint(ORIGIN, size, root, KEY)
    assert open_checkpoint(note, ORIGIN, [KEY.public]) == Checkpoint(origin=ORIGIN, size=size, root=root)


def test_a_witness_may_add_its_signature() -> None:
    text = NOTE.split("\n\n")[0] + "\n"
    witnessed = NOTE + sign_note(text, "witness.example", OTHER).split("\n\n")[1]
    assert open_checkpoint(witnessed, ORIGIN, [KEY.public]).size == 7
    assert open_note(witnessed, "witness.example", [OTHER.public]) == text
