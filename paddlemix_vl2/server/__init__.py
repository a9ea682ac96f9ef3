"""An HTTP server with OpenAI's chat completions, in front of ``paddlemix_vl2.serving``.

schema    the body of a request: what is taken, ignored and refused
pictures  data: URLs -> pictures
remote    http(s) URLs -> bytes, never from a private address
replies   answers as bodies and as events of a stream
errors    what goes wrong, in OpenAI's form
live      an answer of the service's thread inside the event loop, as long as the client is there
metrics   counters and histograms for Prometheus
app       the routes
launch    listening, and a clean end on SIGTERM

docs/server.md describes its use. Pictures and text are prepared in threads, the model has one of its own;
the event loop only moves bytes.
"""

from paddlemix_vl2.server.app import ServerSettings, create_app
from paddlemix_vl2.server.launch import bind, run

__all__ = ["ServerSettings", "bind", "create_app", "run"]
