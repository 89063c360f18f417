"""`fixpatch cache`: what the pair cache holds, and how to empty it, without loading TensorFlow."""

from __future__ import annotations

import typer

from fixpatch import __version__, console, tables
from fixpatch import options as opt

app = typer.Typer(name="cache", no_args_is_help=True, help="Show or clear the cache of adversarial pairs.")


@app.command()
def show(cache: opt.CacheFolder = None, cache_cap: opt.CacheCap = None, as_json: opt.Json = False) -> None:
    """Show where the cache is, what it holds and what it may hold."""
    from fixpatch.cache import open_cache

    held = open_cache(cache or True, cache_cap)
    assert held is not None
    facts = held.facts()
    if as_json:
        console.show_json("cache show", __version__, {"result": console.as_result(facts)})
        return
    console.out().print(f"[bold]{console.plain(facts.folder)}[/]")
    size = f"{bytes_of(facts.bytes)} of {bytes_of(facts.cap_bytes)}"
    used = {"oldest use": facts.oldest_use, "newest use": facts.newest_use}
    tables.show_facts({"entries": facts.entries, "size": size, **used})


@app.command()
def clear(cache: opt.CacheFolder = None, as_json: opt.Json = False) -> None:
    """Remove all pairs from the cache, and nothing else in its folder."""
    from fixpatch.cache import open_cache

    held = open_cache(cache or True)
    assert held is not None
    removed = held.clear()
    if as_json:
        body = {"folder": removed.folder, "entries": removed.entries, "bytes": removed.bytes}
        console.show_json("cache clear", __version__, {"result": body})
    else:
        size = bytes_of(removed.bytes)
        console.out().print(console.plain(f"{removed.folder}: {removed.entries:,} entries removed, {size}"))


def bytes_of(size: int) -> str:
    """Write a size as `1.2 MB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
