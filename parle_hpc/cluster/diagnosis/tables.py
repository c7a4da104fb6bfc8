"""What the doctor prints."""

from tabulate import tabulate

from . import findings


def show(versions):
    show_table(("software", "version"), versions.items())


def show_table(headers, rows):
    print(tabulate(rows, headers, disable_numparse=True), end="\n\n", flush=True)


def folder_rows(sights):
    """One row a host, of its first rank that has something to complain of."""
    rows = []
    for host, here in findings.by_host(sights).items():
        worst = min(here, key=lambda s: (s.seen, not s.write_error, not s.lock_error, not s.sync_error))
        free = "" if worst.free is None else findings.size(worst.free)
        written = f"no ({worst.write_error})" if worst.write_error else "yes" if worst.seen else ""
        lock, forced = (
            f"no ({error})" if error else "yes" if written == "yes" else ""
            for error in (worst.lock_error, worst.sync_error)
        )
        rows.append((host, "yes" if worst.seen else "no", written, lock, forced, free))
    return rows


def conclude(found, size):
    """What to change, or that nothing must."""
    if found:
        print("What to change", *(f"{i}. {line}" for i, line in enumerate(found, 1)), sep="\n", flush=True)
    else:
        print(f"All is well: {size} rank{'s can' if size > 1 else ' can'} train here.", flush=True)
