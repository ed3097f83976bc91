"""The Sanic application: HTTP in, bus messages out. The same one in the router process and on each node."""
