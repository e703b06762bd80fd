"""The parity gate in its own process: `python -m engine.gate_worker`, a GateJob on stdin, a GateReply on stdout.

A plan that is wrong can crash whoever runs it, and leaves a GPU's context unusable; here it takes only itself down.
"""

from __future__ import annotations

from engine.child import serve
from engine.errors import ZturboError
from engine.gate import gate
from engine.job import GateJob, GateReply, failed


def answer(job: GateJob) -> GateReply:
    """The verdicts, or why there are none."""
    try:
        return GateReply(verdicts=gate(job))
    except ZturboError as error:
        return GateReply(failure=failed(error).failure)


def main() -> None:
    """Read a job, judge its plans, reply."""
    serve(GateJob, answer)


if __name__ == "__main__":
    main()
