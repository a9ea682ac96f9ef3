"""Pictures from http(s) URLs, without becoming a way into the server's own network.

A name is resolved here, every address of it must be public, and the connection goes to the address that was
looked at: a name that resolves differently a second time cannot lead elsewhere. Redirects are followed by
hand, each looked at in the same way. No proxy of the environment is used, since it would resolve for itself.
"""

import asyncio
import ipaddress
import socket

import anyio
import httpx

from paddlemix_vl2.server.errors import ApiError

_MAX_REDIRECTS = 3
LAST_PORT = 65535
_REDIRECTS = (301, 302, 303, 307, 308)
# IPv6 networks whose addresses hold an IPv4 address that a gateway may connect to.
_EMBEDDING = [ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public network.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "::ffff:10.0.0.1", "169.254.169.254")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        ip = mapped
    embeds = ip.version == 6 and any(ip in network for network in _EMBEDDING)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not embeds


async def resolve(host: str, port: int) -> str:
    """A public address of the host.

    Raises:
        ValueError: it has none, or one that is not public.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError("its host has no address") from None
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ValueError("its host is not on the public network")
    return addresses[0]


class PictureFetcher:
    """Fetches pictures with a limit on bytes, and on seconds for everything together.

    Args:
        transport: for tests; httpx's own where absent.
    """

    def __init__(self, max_bytes: int, timeout: float, transport: httpx.AsyncBaseTransport | None = None):
        self._max_bytes, self._timeout, self._transport = max_bytes, timeout, transport

    async def fetch(self, url: str, place: str) -> bytes:
        """The bytes behind the URL.

        Raises:
            ApiError: 400, with the reason.
        """
        try:
            with anyio.fail_after(self._timeout):
                return await self._fetch(url)
        except (TimeoutError, httpx.TimeoutException):
            reason = f"took more than {self._timeout:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = str(error) or type(error).__name__
        message = f"{place}: the picture could not be fetched: {reason}"
        raise ApiError(400, message, place, "invalid_image_url")

    async def _fetch(self, url: str) -> bytes:
        # One client per picture: connections are not kept, and nothing of one request is there in the next.
        async with httpx.AsyncClient(
            transport=self._transport, trust_env=False, follow_redirects=False, timeout=self._timeout
        ) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                following, data = await self._get(client, httpx.URL(url))
                if following is None:
                    return data
                url = following
        raise ValueError(f"it is redirected more than {_MAX_REDIRECTS} times")

    async def _get(self, client: httpx.AsyncClient, url: httpx.URL) -> tuple[str | None, bytes]:
        """Where a redirect leads, or None and the bytes."""
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("only http and https URLs with a host are fetched")
        port = url.port or (443 if url.scheme == "https" else 80)
        if port > LAST_PORT:
            raise ValueError(f"there is no port {port}")
        address = await resolve(url.host, port)
        headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"}
        request = client.build_request(
            "GET",
            url.copy_with(host=address, username=None, password=None),
            headers=headers,
            extensions={"sni_hostname": url.host},
        )
        response = await client.send(request, stream=True)
        try:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return str(url.join(response.headers["location"])), b""
            if response.status_code != 200:
                raise ValueError(f"its server replied with status {response.status_code}")
            return None, await self._read(response)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_raw():  # not decompressed: a few bytes could become many
            data += chunk
            if len(data) > self._max_bytes:
                raise ValueError(f"it has more than {self._max_bytes:,} bytes")
        return bytes(data)
