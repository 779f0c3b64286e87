"""The carrier of two clusters: a cargo is laid ready for the border service, and the job gets a ticket.

It runs in the private zone. Only a crossing whose intent the ledger has proven gets an offer, papers and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from fabric.border_client import BorderTicket, Papers
from fabric.certificates import Authority
from fabric.config import BorderTerms, Config
from fabric.crossing import Cargo
from fabric.inbox import Inbox
from fabric.ledger import Ledger
from fabric.recording import new_id, now
from fabric.staging import Staging
from fabric.statements import Signed, SigningKey
from fabric.stores import Home
from fabric.tokens import Direction, Recorded, mint
from fabric.verification import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderCarrier:
    """Lays cargoes ready for the border service of one fabric.

    Attributes:
        address: host and port under which the other zone reaches the service.
    """

    fabric: str
    terms: BorderTerms
    address: str
    ledger: Ledger
    key: SigningKey
    authority: Authority
    staging: Staging
    inbox: Inbox

    @classmethod
    def of(cls, config: Config, home: Home, ledger: Ledger, *, address: str) -> BorderCarrier:
        """Return the carrier of a fabric, whose service is reached under `address`."""
        return cls(
            fabric=config.name,
            terms=config.border,
            address=address,
            ledger=ledger,
            key=home.token_key(),
            authority=Authority.open(home, now=now()),
            staging=Staging.of(home, ledger.keys),
            inbox=Inbox.of(home, most=config.border.return_mib << 20),
        )

    def carry(self, cargo: Cargo, grant: Signed, receipt: Receipt) -> BorderTicket:
        """Lay the cargo ready, and return the ticket of the job in the other zone.

        Raises:
            EvidenceInvalid: the receipt does not prove that the crossing was recorded.
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        offer = self.staging.offer(cargo, grant.envelope, receipt, self.ledger.record(receipt))
        return BorderTicket(
            crossing=offer.recorded.crossing,
            chunk_count=len(cargo.matrix.chunks),
            papers=self._papers(offer.recorded.zone),
            fetch=self._token(offer.recorded, Direction.FETCH),
            give=self._token(offer.recorded, Direction.RETURN),
        )

    def close(self, crossing: str) -> None:
        """Close a crossing: its tokens open nothing any more. What it returned stays until it is taken."""
        self.staging.close(crossing)

    def _papers(self, zone: str) -> Papers:
        pair = self.authority.for_zone(zone, now=now(), lasts=timedelta(hours=self.terms.certificate_hours))
        return Papers(
            address=self.address,
            zone=zone,
            authority=self.authority.certificate.decode(),
            certificate=pair.certificate.decode(),
            key=pair.key.decode(),
        )

    def _token(self, recorded: Recorded, direction: Direction) -> str:
        return mint(
            recorded,
            direction,
            fabric=self.fabric,
            key=self.key,
            lasts=timedelta(minutes=self.terms.token_minutes),
            now=now(),
            token_id=new_id(),
        )
