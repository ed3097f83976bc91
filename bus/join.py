"""Join tokens: how a node shows that it has one without saying it. Pure.

A token is a secret that an admin gives to nodes. The cluster keeps only its digest; a node sends a proof bound to its
own id, so that what is read off the bus lets in no other node. What this does not hold against: whoever can read the
bucket llmlb-settings has the digest, and can make proofs with it. Who may be on the bus at all is up to the bus's own
credentials.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "llmlb-join-"


def new_token() -> str:
    """A token with 256 bits of chance, recognisable by its beginning."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What is kept of a token: its sha256, 64 hex digits. No salt: there is nothing to guess in 256 bits."""
    return hashlib.sha256(token.strip().encode()).hexdigest()


def token_id_of(digest: str) -> str:
    """Names a token without giving it away: 12 hex digits."""
    return digest[:12]


def proof_of(digest: str, node_id: str) -> str:
    """What a node sends: HMAC-SHA256 of its id under the token's digest, 64 hex digits."""
    return hmac.new(digest.encode(), node_id.encode(), hashlib.sha256).hexdigest()


def proves(proof: str, digest: str, node_id: str) -> bool:
    """Whether this node has the token of that digest."""
    return hmac.compare_digest(proof.encode(), proof_of(digest, node_id).encode())
