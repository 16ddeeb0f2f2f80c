"""``fmplex bench fleet | hosted | cluster | plan``: a fleet of nodes on this machine, and the planner by itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.errors import InvalidInput
from fmplex_backend.processor import processor_name
from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    JsonFile,
    PlotsTo,
    Repository,
    Seconds,
    Seed,
    carry_out,
    choices,
    numbers,
)
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.console import err, out

_CLUSTER_FMS = "minilm,bge,dinov2,fracast"


def fleet(
    times: Annotated[int, typer.Option("--times", min=0, max=1000, help="Each kind of fault.")] = 10,
    only: Annotated[str, typer.Option(help="Kinds of faults, comma-separated; all unless told.")] = "",
    nodes: Annotated[int, typer.Option(min=3, max=32, help="Ray nodes, a tritonserver each.")] = 4,
    vfms: Annotated[int, typer.Option(min=4, max=512, help="On two physical FMs, two replicas each.")] = 64,
    clients: Annotated[int, typer.Option(min=4, max=256, help="Half ours, half Triton's own, HTTP and gRPC.")] = 8,
    seconds: Seconds = 6.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """A fleet of Ray nodes on this machine behind one door: are answers one machine's, and what does it survive?

    First every vFM's answers are compared with those of one machine, over HTTP and gRPC, by Triton's clients and ours.
    Then, under load, each kind of fault by turns; then vFMs are added, removed and moved; then the door's price by
    perf_analyzer. Exits with 1 where a request is lost or answered otherwise. Ten times all faults take half an hour.

    Examples:

      fmplex bench fleet

      fmplex bench fleet --times 2 --only node,door --vfms 16
    """
    from fmplex_tools.bench.fleet.bench import BenchPlan
    from fmplex_tools.bench.fleet.bench import fleet as scenario
    from fmplex_tools.bench.fleet.scenes import KINDS

    kinds = tuple(only.split(",")) if only else KINDS
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InvalidInput(f"--only {unknown[0]!r}: kinds are {', '.join(KINDS)}")

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = BenchPlan(
            source=repository,
            fm=FM,
            seed=seed,
            nodes=nodes,
            vfms=vfms,
            spare=min(20, vfms // 3),
            times=times,
            kinds=kinds,
            clients=clients,
            seconds=seconds,
        )
        return scenario(plan, progress, noted)

    conditions = {"nodes": nodes, "vfms": vfms, "times": times, "clients": clients, "seed": seed}
    carry_out("fleet", measure, conditions, json_file, None)


def hosted(
    vfms: Annotated[int, typer.Option(min=8, max=2000, help="Of the fleet.")] = 660,
    nodes: Annotated[int, typer.Option(min=2, max=32, help="Each with a tritonserver.")] = 4,
    memory: Annotated[str, typer.Option(help="Of a node, for all that runs on it.")] = "3 GB",
    demand: Annotated[float, typer.Option(min=0.001, max=100, help="Requests a second of each task.")] = 0.05,
    p99: Annotated[float, typer.Option(min=1, help="Milliseconds that 99 of 100 requests may take.")] = 500.0,
    seconds: Seconds = 60.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """How many tasks do a few nodes of little memory host, as vFMs of a fleet and as private copies?

    Both are really started and asked, the fleet through its door. Exits with 1 where a node takes more memory than it
    has, a request fails, p99 is missed, or the fleet hosts less than 20 times as many. Takes some ten minutes.

    Examples:

      fmplex bench hosted

      fmplex bench hosted --vfms 200 --nodes 2 --memory 1.5GB --seconds 20
    """
    from fmplex_tools.bench.fleet.hosted import HostedPlan
    from fmplex_tools.bench.fleet.hosted import hosted as scenario

    _bytes(memory)
    asked = HostedPlan(
        source=repository,
        fm=FM,
        seed=seed,
        nodes=nodes,
        memory=memory,
        vfms=vfms,
        demand=demand,
        seconds=seconds,
        p99_ms=p99,
    )

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        return scenario(asked, progress, noted)

    conditions = {"nodes": nodes, "memory": memory, "vfms": vfms, "demand": demand, "seed": seed}
    carry_out("hosted", measure, conditions, json_file, None)


def _bytes(memory: str) -> int:
    """Raises `InvalidInput`."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(memory))
    except ValidationError:
        raise InvalidInput(f"--memory {memory!r} is no size; e.g. '3 GB'") from None


def cluster(
    devices: Annotated[int, typer.Option(min=1, max=10_000, help="Of one kind, all alike.")] = 100,
    fms: Annotated[str, typer.Option(help="Physical FMs of the catalogue; as many tasks on each.")] = _CLUSTER_FMS,
    rates: Annotated[str, typer.Option(help="Rows a second of each task, comma-separated.")] = "0.1,0.5,1",
    p99: Annotated[float, typer.Option(min=1, help="Milliseconds, or ten times a row alone if that is more.")] = 500.0,
    memory: Annotated[str, typer.Option(help="Of one device, where devices are such as this machine.")] = "3 GB",
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
) -> None:
    """How many tasks does a cluster host, as vFMs that are planned and as private copies? In virtual time.

    Costs and memory of the physical FMs are measured first, on a server of its own. Then three kinds of devices:
    this machine, as measured; a GPU, by assumption (80 GB, 100 times as fast, launches of 5 ms); and that GPU with all
    that may be assumed in favour of private copies. Exits with 1 where at one of the rates the GPUs host less than 12
    times as many vFMs as copies: at high ones computing limits both.

    Examples:

      fmplex bench cluster --plots docs/plots        # 23 minutes, one core

      fmplex bench cluster --devices 10 --fms minilm,dinov2 --rates 1
    """
    from fmplex_tools.bench.cluster.bench import ClusterPlan
    from fmplex_tools.bench.cluster.bench import cluster as scenario
    from fmplex_tools.bench.cluster.measured import measured
    from fmplex_tools.bench.cluster.picture import draw
    from fmplex_tools.bench.cluster.world import gpu_world, kind_to_copies, measured_world
    from fmplex_tools.catalogue.specs import FMS, MODALITIES
    from fmplex_tools.fetching import fetch_backbone

    chosen = {fm: FMS[fm] for fm in choices(fms, "--fms", list(FMS))}
    asked = ClusterPlan(devices=devices, rates=tuple(numbers(rates, "--rates", 0.001, 10_000.0)), p99_ms=p99, seed=seed)
    room = _bytes(memory)

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        noted["machine"] = processor_name()
        for backbone in chosen.values():
            fetch_backbone(backbone, err)
        line = progress.add_task("measuring the physical FMs", total=None)
        found = measured(chosen, MODALITIES, seed)
        progress.remove_task(line)
        gpu = gpu_world(found)
        outcome = scenario(asked, [measured_world(found, room), gpu, kind_to_copies(gpu)], gpu.name, progress)
        if plots_to is not None:
            out.print(f"drawn: {draw(outcome, plots_to)}")
        return outcome

    conditions = {"devices": devices, "fms": fms, "p99 ms": p99, "memory": memory, "seed": seed}
    carry_out("cluster", measure, conditions, json_file, None)


def plan(
    vfms: Annotated[int, typer.Option(min=100, max=1_000_000, help="Of the large fleet.")] = 100_000,
    devices: Annotated[int, typer.Option(min=1, max=100_000, help="Of the large fleet.")] = 1_000,
    small: Annotated[int, typer.Option(min=1, max=1000, help="Random small fleets, solved exactly too.")] = 40,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """How long planning takes, how near to the best it comes, and how true its estimates are; nothing is served.

    A large fleet is read, planned and checked in the simulator, then planned again with 1 % of its vFMs exchanged;
    small ones are compared with the exact optimum; estimated latencies with the real queue's in virtual time.

    Examples:

      fmplex bench plan

      fmplex bench plan --vfms 5000 --devices 60 --small 10
    """
    from fmplex_tools.bench.planner.bench import PlannerPlan, planner

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        return planner(PlannerPlan(vfms=vfms, devices=devices, small=small, seed=seed), progress, noted)

    carry_out("plan", measure, {"vfms": vfms, "devices": devices, "small": small, "seed": seed}, json_file, None)
