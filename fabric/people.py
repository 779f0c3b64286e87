"""Seeded records of people who do not exist, for the demo and the first steps.

Names, e-mails, national ids, phone numbers, birth dates, notes, codes and amounts, with a learnable target: the yearly
cost follows from age, condition, plan and visits, plus noise. Every identifier is drawn from a range that is reserved
or never issued.
"""

from __future__ import annotations

import csv
from datetime import date, timedelta
from pathlib import Path
from random import Random

_FIRST = (
    "Ada",
    "Ben",
    "Cara",
    "Dilan",
    "Eva",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Liam",
    "Mona",
    "Nils",
)
_LAST = (
    "Abel",
    "Brandt",
    "Cordes",
    "Dietz",
    "Engel",
    "Fuchs",
    "Gerber",
    "Hahn",
    "Ilg",
    "Jung",
    "Kraus",
    "Lenz",
    "Maurer",
)
_CONDITIONS = {"none": 0, "asthma": 900, "diabetes": 2600, "cardiac": 5200, "renal": 7400}
_PLANS = {"basic": 0, "plus": 350, "premium": 800}
_REGIONS = ("north", "east", "south", "west")

COLUMNS = (
    "name", "email", "national_id", "phone", "birth_date", "region", "condition", "plan", "visits", "income",
    "notes", "cost",
)  # fmt: skip


def write_people(path: Path, *, rows: int, seed: int) -> None:
    """Write `rows` people to a CSV file; the same seed gives the same bytes."""
    random = Random(seed)  # noqa: S311 - made-up people, not keys
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_person(random) for _ in range(rows))


def _person(random: Random) -> tuple[str, ...]:
    first, last = random.choice(_FIRST), random.choice(_LAST)
    birth = date(1930, 1, 1) + timedelta(days=random.randrange(33_000))
    condition = random.choices(list(_CONDITIONS), weights=(60, 15, 12, 8, 5))[0]
    plan = random.choice(list(_PLANS))
    visits = min(40, int(random.expovariate(0.25)) + (condition != "none") * 2)
    age = (date(2026, 1, 1) - birth).days // 365
    cost = 400 + 28 * age + _CONDITIONS[condition] + _PLANS[plan] + 210 * visits + random.gauss(0, 450)
    phone = f"202-555-{random.randrange(100, 200):04d}"
    # 900-999 is never issued as the first group of a US social security number.
    national_id = f"{random.randrange(900, 1000)}-{random.randrange(10, 99)}-{random.randrange(1000, 9999)}"
    return (
        f"{first} {last}",
        f"{first}.{last}{random.randrange(100)}@example.org".lower(),
        national_id,
        phone,
        birth.isoformat(),
        random.choice(_REGIONS),
        condition,
        plan,
        str(visits),
        str(random.randrange(14_000, 160_000)),
        f"Spoke to {first} on {phone} about the {plan} plan; id {national_id} checked.",
        f"{max(100.0, cost):.2f}",
    )
