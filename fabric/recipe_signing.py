"""Signed recipes: the data owner's statement about a recipe's digest, to lie beside its file.

The recipe changed, the statement no longer fits. Pure: key and time come in as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from fabric.errors import Reason, StatementInvalid
from fabric.statements import PublicKey, Signed, SigningKey, Statement, sign, timestamp, verify
from sanitize.recipe import Recipe

RECIPE_TYPE = "urn:zonefabric:statement:recipe:v1"
SUFFIX = ".sig"


def sign_recipe(recipe: Recipe, key: SigningKey, *, now: datetime, days: int) -> Signed:
    """Return the statement of `key`'s owner that lets out what `recipe` says, for so many days."""
    return sign(
        Statement(
            subjects={recipe.name: recipe.digest},
            predicate_type=RECIPE_TYPE,
            predicate={
                "recipe": recipe.digest,
                "purpose": recipe.purpose,
                "records": list(recipe.sources),
                "columns": list(recipe.outgoing),
                "preset": recipe.preset,
                "keyid": key.public.keyid,
                "issued_at": timestamp(now),
                "expires_at": timestamp(now + timedelta(days=days)),
            },
        ),
        key,
    )


def verify_recipe(envelope: bytes, recipe: Recipe, *, trusted: Sequence[PublicKey], now: datetime) -> Signed:
    """Return the statement in `envelope` if a trusted key signed it for this very recipe.

    Raises:
        StatementInvalid: what `fabric.statements.verify` refuses, or `DIGEST_MISMATCH` for another recipe.
    """
    signed = verify(envelope, trusted=trusted, predicate_type=RECIPE_TYPE, now=now)
    if dict(signed.statement.subjects) != {recipe.name: recipe.digest}:
        raise StatementInvalid(
            Reason.DIGEST_MISMATCH,
            f"what was signed is another recipe than {recipe.name!r}, {recipe.digest}",
            "the recipe was changed: its owner reads it again, removes the old signature, and signs",
        )
    return signed
