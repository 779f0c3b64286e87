"""The border's own certificate authority: one server certificate, and one client certificate for each zone.

Keys are P-256, which TLS libraries accept everywhere (gRPC's does not take Ed25519). Certificates are short-lived and
made anew in time; the authority's own lasts, and lies in the home folder with mode 0600. A client's certificate says
which zone it was given to, and nothing else: what a bearer may do is said by tokens.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fabric.errors import FabricError, Reason
from fabric.flight_messages import SERVER_NAME
from fabric.stores import Home

_ZONE = "zone:"
_BACKDATED = timedelta(minutes=5)  # clocks of two zones differ
_AUTHORITY_LASTS = timedelta(days=3653)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "KeyPair(...)"


@dataclass(frozen=True, slots=True)
class Authority:
    """The border's certificate authority. Opened from the home folder; made on first use."""

    pair: KeyPair

    @classmethod
    def open(cls, home: Home, *, now: datetime) -> Authority:
        """Return the authority of a fabric, made on first use.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`; `KEY_UNKNOWN` if its file is not whole.
        """
        path = home.border_folder("tls") / "authority.pem"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("fabric border authority")
            usage = x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            )  # fmt: skip
            builder = _builder(name, name, key.public_key(), now, now + _AUTHORITY_LASTS)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
            # Key and certificate in one file: they become true together. Who comes second takes the first one's.
            home.write_once(path, _pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        return cls(_read(path))

    @property
    def certificate(self) -> bytes:
        """Return the authority's certificate in PEM: all that a zone needs to know the border by."""
        return self.pair.certificate

    def for_server(self, hosts: Sequence[str], *, now: datetime, lasts: timedelta) -> KeyPair:
        """Return a new key and certificate for the border service, good for its fixed name and `hosts`."""
        names: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME)]
        for host in dict.fromkeys(hosts):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._issue(SERVER_NAME, key.public_key(), now, now + lasts, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return KeyPair(certificate=self._sign(builder), key=_pem(key))

    def for_zone(self, zone: str, *, now: datetime, lasts: timedelta) -> KeyPair:
        """Return a new key and client certificate for a zone."""
        key = ec.generate_private_key(ec.SECP256R1())
        return KeyPair(certificate=self._client(zone, key.public_key(), now, now + lasts), key=_pem(key))

    def renewed(self, certificate: bytes, *, now: datetime, lasts: timedelta) -> bytes:
        """Return a client certificate that goes on from one that is still good: the same zone, the same key.

        Raises:
            FabricError: `KEY_UNKNOWN`: it is none of this authority's, or its time is over.
        """
        try:
            old = x509.load_pem_x509_certificate(certificate)
            old.verify_directly_issued_by(x509.load_pem_x509_certificate(self.pair.certificate))
            public = old.public_key()
            zone = zone_named(str(old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
        except Exception:  # noqa: BLE001 - the library raises of many kinds; whatever it is, it is no certificate of ours
            raise _unknown("the certificate is none of this border's") from None
        if not isinstance(public, ec.EllipticCurvePublicKey) or not zone or now >= old.not_valid_after_utc:
            raise _unknown("the certificate is of no zone, or its time is over")
        return self._client(zone, public, now, now + lasts)

    def _client(self, zone: str, public: ec.EllipticCurvePublicKey, now: datetime, until: datetime) -> bytes:
        return self._sign(self._issue(f"{_ZONE}{zone}", public, now, until, ExtendedKeyUsageOID.CLIENT_AUTH))

    def _issue(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        now: datetime,
        until: datetime,
        usage: x509.ObjectIdentifier,
    ) -> x509.CertificateBuilder:
        issuer = x509.load_pem_x509_certificate(self.pair.certificate)
        builder = _builder(_name(name), issuer.subject, public, now, min(until, issuer.not_valid_after_utc))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        key = serialization.load_pem_private_key(self.pair.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - `_read` looked
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def zone_named(common_name: str) -> str:
    """Return the zone that a client certificate's common name says; empty if it says none."""
    return common_name.removeprefix(_ZONE) if common_name.startswith(_ZONE) else ""


def expires_at(certificate: bytes) -> datetime:
    """Return when a certificate ends."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _read(path: Path) -> KeyPair:
    try:
        content = path.read_bytes()
        key, mark, certificate = content.partition(b"-----BEGIN CERTIFICATE-----")
        loaded = serialization.load_pem_private_key(key, None)
        public = x509.load_pem_x509_certificate(mark + certificate).public_key()
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != public:
            raise ValueError("two keys")
    except (OSError, ValueError, TypeError):
        raise FabricError(
            Reason.KEY_UNKNOWN, f"{path} is not the border's authority", "restore it, or remove it: papers end with it"
        ) from None
    return KeyPair(certificate=mark + certificate, key=key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _BACKDATED).not_valid_after(until)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _unknown(message: str) -> FabricError:
    return FabricError(Reason.KEY_UNKNOWN, message, "start the job again: it is given papers of its own")
