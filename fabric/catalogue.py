"""The price catalogue: a CSV file in SkyPilot's column names, read strictly, and what a zone costs by it.

The columns are those of SkyPilot's `vms.csv`; ours beside them are optional. A price is never guessed: a broken row
refuses the whole file, naming the line and the column; a file that was good stays in use while its successor is broken;
prices that are older than `stale_after_hours` count as unknown, and what has no known price gets no work.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fabric.budget_tables import PriceSettings
from fabric.charges import Terms
from fabric.errors import InvalidInput, Reason, nearest
from fabric.money import micros, per_one
from fabric.zones import Zone, ZoneKind, is_gpu_model

REQUIRED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "Price", "SpotPrice", "Region")
SKYPILOT = (*REQUIRED, "MemoryGiB", "GpuInfo", "AvailabilityZone", "Arch")
OURS = ("Provider", "EgressPricePerGB", "IdlePrice")
MAX_BYTES = 64 * 1024 * 1024
MAX_COUNT = 100_000
CLOCK_TOLERANCE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One row: an instance type in one place, with its prices in micros.

    Attributes:
        gpu_model: AcceleratorName; empty for an instance without GPUs.
        units: GPUs of the instance, or its CPUs if it has none; what prices are divided by.
        price: of the instance for an hour, on demand.
        spot: the same where the provider may take it back; None if there is none.
        idle: of the instance for an hour without work; its price where the row says nothing.
        egress_gb: of 10^9 bytes that leave; None if unknown.
        provider: empty in a file of one provider's, which then fits every zone.
    """

    line: int
    instance_type: str
    gpu_model: str
    units: int
    price: int
    spot: int | None
    idle: int
    region: str
    availability_zone: str = ""
    provider: str = ""
    egress_gb: int | None = None

    @property
    def hour(self) -> int:
        """Return the price of one GPU (of one CPU, where there are none) for an hour."""
        return per_one(self.price, self.units)

    @property
    def spot_hour(self) -> int | None:
        """Return the same at the spot price."""
        return None if self.spot is None else per_one(self.spot, self.units)

    @property
    def idle_hour(self) -> int:
        """Return what one GPU costs for an hour without work."""
        return per_one(self.idle, self.units)


@dataclass(frozen=True)
class Catalogue:
    """All offers of one file."""

    offers: tuple[Offer, ...]

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Return every GPU model that is offered."""
        return tuple(sorted({offer.gpu_model for offer in self.offers if offer.gpu_model}))

    def of_model(self, model: str) -> tuple[Offer, ...]:
        """Return the offers of a GPU model, the cheapest first.

        Raises:
            InvalidInput: `GPU_MODEL_UNKNOWN`, with the nearest model.
        """
        if model not in self.models:
            raise unknown_model(model, self.models)
        return _cheapest_first(offer for offer in self.offers if offer.gpu_model == model)

    def of_zone(self, zone: Zone) -> Offer | None:
        """Return the cheapest offer that fits a zone: its provider, its region and its GPU model."""
        found = _cheapest_first(
            offer
            for offer in self.offers
            if offer.gpu_model == zone.gpu_model
            and offer.region == zone.region
            and offer.provider in ("", zone.provider)
        )
        return found[0] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonePrices:
    """What a zone costs, in micros, as far as anybody knows.

    Attributes:
        hour: of one GPU (of one CPU, in a zone without) for an hour; None if unknown.
        known_s: when the prices were those; None for one's own hardware, whose prices stand in fabric.toml.
        why: why they are unknown; empty if they are not.
    """

    hour: int | None
    spot: int | None = None
    idle: int = 0
    egress: int | None = None
    offer: Offer | None = None
    known_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The prices in force at one moment.

    Attributes:
        catalogue: None if there is none that can be used.
        written_s: when the file that it was read from was last written.
        problem: what is wrong with the newest file, if an older one is in use or none is.
    """

    settings: PriceSettings
    catalogue: Catalogue | None
    written_s: float
    now_s: float
    problem: InvalidInput | None = None

    @property
    def stale(self) -> bool:
        """Say whether the prices are too old to count, or from a time to come."""
        age = self.now_s - self.written_s
        return age > self.settings.stale_after_s or age < -CLOCK_TOLERANCE_S

    def require(self) -> Catalogue:
        """Return the catalogue.

        Raises:
            InvalidInput: `CATALOGUE_INVALID`, `PRICE_INVALID` or `PRICES_STALE`.
        """
        if self.catalogue is None:
            raise self.problem or _invalid("no price catalogue is named", "set prices.catalogue in fabric.toml")
        if self.stale:
            raise InvalidInput(Reason.PRICES_STALE, self._age(), "refresh the file, or raise prices.stale_after_hours")
        return self.catalogue

    def of(self, zone: Zone) -> ZonePrices:
        """Return what a zone costs; unknown where the catalogue is missing, stale or lacks it."""
        settings = self.settings
        if zone.kind is ZoneKind.PRIVATE:
            return ZonePrices(hour=settings.inside_running or 0, idle=settings.inside_idle or 0, egress=0)
        try:
            offer = self.require().of_zone(zone)
        except InvalidInput as error:
            return ZonePrices(hour=None, why=error.reason.value)
        if offer is None:
            return ZonePrices(hour=None, why=Reason.PRICE_UNKNOWN.value)
        return ZonePrices(
            hour=offer.hour,
            spot=offer.spot_hour,
            idle=offer.idle_hour,
            egress=offer.egress_gb,
            offer=offer,
            known_s=self.written_s,
        )

    def terms(self, zone: Zone, *, spot: bool = False) -> Terms:
        """Return the prices at which work would be admitted to a zone.

        Raises:
            InvalidInput: `PRICE_UNKNOWN` if the catalogue has no such price; else as `require`.
        """
        owned = zone.kind is ZoneKind.PRIVATE
        if not owned:
            self.require()
        found = self.of(zone)
        price = found.spot if spot else found.hour
        if price is None or found.hour is None:
            raise InvalidInput(
                Reason.PRICE_UNKNOWN,
                f"the catalogue has no {'spot ' if spot else ''}price for zone {zone.name!r}",
                f"add a row with Region {zone.region!r}, Provider {zone.provider!r} and AcceleratorName "
                f"{zone.gpu_model!r}, or set the zone's provider, region and gpu_model to a row's",
            )
        return Terms(
            zone=zone.name,
            currency=self.settings.currency,
            gpu_hour=price,
            list_gpu_hour=found.hour,
            idle_hour=found.idle,
            egress_gb=found.egress or 0,
            inside_hour=self.settings.inside_running,
            provider=zone.provider,
            region=zone.region,
            availability_zone=found.offer.availability_zone if found.offer else "",
            sku=found.offer.instance_type if found.offer else "",
            gpu_model=zone.gpu_model,
            spot=spot,
            owned=owned,
        )

    def _age(self) -> str:
        hours = (self.now_s - self.written_s) / 3600
        if hours < 0:
            return "the price catalogue was written in a time to come: a clock is wrong"
        return f"the price catalogue is {hours:.0f} hours old; {self.settings.stale_after_s // 3600} are allowed"


class PriceBook:
    """The catalogue's file, read again when it has changed; a broken successor leaves the last good one in use."""

    def __init__(self, settings: PriceSettings) -> None:
        self._settings = settings
        self._seen: tuple[int, int] | None = None
        self._catalogue: Catalogue | None = None
        self._written_s = 0.0
        self._problem: InvalidInput | None = None

    def at(self, now_s: float) -> Prices:
        """Return the prices in force; whatever is wrong with the file is said in them, never raised."""
        self._refresh()
        return Prices(
            settings=self._settings,
            catalogue=self._catalogue,
            written_s=self._written_s,
            now_s=now_s,
            problem=self._problem,
        )

    def _refresh(self) -> None:
        path = self._settings.catalogue
        if path is None:
            return
        try:
            # Read first: what is written after this shows in the next look's time or size.
            found = path.stat()
            seen = (found.st_mtime_ns, found.st_size)
            if seen == self._seen:
                return
            self._catalogue = read_catalogue(path)
        except OSError:
            self._seen, self._problem = None, _invalid(f"{path.name} cannot be read", "set prices.catalogue to a file")
            return
        except InvalidInput as error:
            self._seen, self._problem = seen, error
            return
        self._seen, self._written_s, self._problem = seen, found.st_mtime, None


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue from a file.

    Raises:
        OSError: it cannot be read.
        InvalidInput: as `parse_catalogue`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _invalid(f"{path.name} is larger than {MAX_BYTES >> 20} MiB", "keep the rows of your zones' regions")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _invalid(f"{path.name} is not UTF-8 text", "save it as CSV in UTF-8") from None
    return parse_catalogue(text, source=path.name)


def parse_catalogue(text: str, *, source: str) -> Catalogue:
    """Read a catalogue from CSV text.

    Raises:
        InvalidInput: `CATALOGUE_INVALID` or `PRICE_INVALID`, naming the line and the column, never the cell's value.
    """
    if text and not text.endswith("\n"):
        # Nothing else tells a whole file from one that is cut inside its last cell, which may be a price.
        raise _invalid(f"{source}: its last line does not end, so it may be cut off", "write it again, with a newline")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    offers: list[Offer] = []
    places: dict[tuple[str, ...], int] = {}
    try:
        header = _header(next(reader, []), source)
        for cells in reader:
            line = reader.line_num
            if len(cells) != len(header):
                raise _invalid(f"{source}, line {line}: {len(cells)} cells for {len(header)} columns", "mend the row")
            row = dict(zip(header, cells, strict=True))
            place = tuple(row.get(name, "") for name in ("Provider", "InstanceType", "Region", "AvailabilityZone"))
            if place in places:
                raise _invalid(
                    f"{source}, line {line}: the same instance type and place as line {places[place]}",
                    "keep one of them",
                )
            places[place] = line
            offers.append(_offer(row, line, source))
    except csv.Error:
        raise _invalid(f"{source}, line {reader.line_num}: not CSV", "check its quotes") from None
    if not offers:
        raise _invalid(f"{source} has no row", "a catalogue without offers prices nothing")
    return Catalogue(tuple(offers))


def parse_gpus(text: str) -> tuple[str, int]:
    """Return the model and number of GPUs in `MODEL[:COUNT]`.

    Raises:
        InvalidInput: `CONFIG_INVALID`.
    """
    model, colon, count = text.partition(":")
    found = int(count) if count.isascii() and count.isdigit() and len(count) < 7 else 0
    if not is_gpu_model(model) or (colon and not found):
        raise InvalidInput(Reason.CONFIG_INVALID, "that is no model and number of GPUs", "MODEL or MODEL:COUNT: H200:8")
    return model, found or 1


def unknown_model(model: str, models: Sequence[str]) -> InvalidInput:
    """Return the refusal of a GPU model that nobody offers, with the nearest one."""
    alike = [one for one in models if one.lower() == model.lower()]
    hint = f"did you mean {alike[0]!r}? Allowed: {', '.join(models)}." if alike else nearest(model, models)
    return InvalidInput(Reason.GPU_MODEL_UNKNOWN, f"no GPU model {model!r} is offered", hint)


def _header(cells: Sequence[str], source: str) -> list[str]:
    known = (*SKYPILOT, *OURS)
    for name in cells:
        if name not in known:
            raise _invalid(f"{source}, line 1: unknown column {name!r}", nearest(name, known))
    if missing := [name for name in REQUIRED if name not in cells]:
        raise _invalid(f"{source}, line 1: no column {missing[0]!r}", f"SkyPilot's names: {', '.join(SKYPILOT)}")
    if len(set(cells)) != len(cells):
        raise _invalid(f"{source}, line 1: a column stands there twice", "name each column once")
    return list(cells)


def _offer(row: Mapping[str, str], line: int, source: str) -> Offer:
    where = f"{source}, line {line}"
    model, count = row["AcceleratorName"], row["AcceleratorCount"]
    for name in ("InstanceType", "Region"):
        if not row[name].strip():
            raise _invalid(f"{where}: {name} is empty", "say which instance type it is, and where")
    if model and not is_gpu_model(model):
        raise _invalid(f"{where}: AcceleratorName is no GPU model's name", "letters, digits, '.', '_' and '-'")
    if not model and _count(count or "0") != 0:
        raise _invalid(f"{where}: AcceleratorCount without AcceleratorName", "name the model")
    units = _count(count if model else row["vCPUs"])
    if units < 1:
        raise _invalid(
            f"{where}: {'AcceleratorCount' if model else 'vCPUs'} is no whole number of 1 or more",
            "give it, or drop the row",
        )
    price = _money(row, "Price", where)
    return Offer(
        line=line,
        instance_type=row["InstanceType"],
        gpu_model=model,
        units=units,
        price=price,
        spot=_money(row, "SpotPrice", where) if row["SpotPrice"] else None,
        idle=_money(row, "IdlePrice", where) if row.get("IdlePrice") else price,
        region=row["Region"],
        availability_zone=row.get("AvailabilityZone", ""),
        provider=row.get("Provider", ""),
        egress_gb=_money(row, "EgressPricePerGB", where) if row.get("EgressPricePerGB") else None,
    )


def _money(row: Mapping[str, str], column: str, where: str) -> int:
    text = row[column]
    found = micros(text)
    if found is None:
        problem = "is empty" if not text else "is negative" if text.startswith("-") else "is not plain digits"
        raise InvalidInput(
            Reason.PRICE_INVALID, f"{where}: {column} {problem}", "give a price such as 3.50, or leave the row out"
        )
    return found


def _count(text: str) -> int:
    """Return a whole number, which SkyPilot writes as `8` or `8.0`; -1 for what is none."""
    whole, _, rest = text.partition(".")
    if not whole.isascii() or not whole.isdigit() or rest.strip("0") or len(whole) > 6:
        return -1
    return int(whole) if int(whole) <= MAX_COUNT else -1


def _cheapest_first(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    return tuple(sorted(offers, key=lambda one: (one.hour, one.spot_hour or math.inf, one.line)))


def _invalid(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.CATALOGUE_INVALID, message, hint)
