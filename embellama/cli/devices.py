"""`embellama devices`: print the devices that models can be computed on."""

import click

from embellama.cli.output import Command, json_line, write_line
from embellama.kernels import KernelsUnusable, library
from embellama.machine.devices import GPU_BUILD, gpu_build
from embellama.machine.devices import devices as list_devices


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead.")
def devices(as_json: bool) -> None:
    """List what models can be computed on here."""
    found = list_devices()
    if as_json:
        write_line(json_line(found))
        return
    for device in found:
        free, total = device.free_bytes / 1e9, device.total_bytes / 1e9
        write_line(f"{device.name}  {device.kind}  {device.description}  {free:.1f} of {total:.1f} GB free")
    try:
        library()
    except KernelsUnusable as error:
        write_line(f"Our kernels cannot be used: {error}")
    if not gpu_build():
        write_line(f"This build uses no GPU; {GPU_BUILD}")
