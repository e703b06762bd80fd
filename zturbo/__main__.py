"""`python -m zturbo`: the same as the `zturbo` command."""

from __future__ import annotations

from zturbo.cli import app

if __name__ == "__main__":
    app(prog_name="zturbo")
