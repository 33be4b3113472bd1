"""Every exception that hwprune raises on purpose.

    HwpruneError                     exit 1: the job failed; the message is one sentence for the user
    ├── UsageError                   exit 2: an argument, a spec or a file given by the user is wrong
    │   ├── TargetError              an unknown target, or a profile with a bad key or value
    │   ├── ModelError               a model spec or weights that do not fit
    │   ├── DataError                data whose shape, type or labels do not fit
    │   └── BudgetError              a budget that no allowed network reaches
    ├── TraceError                   torch.export refused the model (carries the user's source line)
    ├── PlanError                    a pruning plan that does not fit the model
    ├── ProofError                   a pruned model that does not compute what it should
    ├── CompileError                 the network cannot be compiled for the target
    │   └── UnsupportedOperator      an operator that the compiler has no rule for
    ├── MeasureError                 a device or a worker did not deliver a measurement
    ├── ArtifactError                an artifact that is incomplete, altered or for another machine
    ├── StoreError                   the measurement store cannot be read or written
    └── NoLatency                    no cost model knows this workload
    Infeasible                       one candidate is impossible; raised by rules, caught by the search or tuner alone

Messages say what is wrong, where, and how to mend it, and quote the values at fault.
"""

from __future__ import annotations


class HwpruneError(Exception):
    """Base of all errors that reach the user as one sentence."""

    exit_code = 1


class UsageError(HwpruneError):
    exit_code = 2


class TargetError(UsageError):
    pass


class ModelError(UsageError):
    pass


class DataError(UsageError):
    pass


class BudgetError(UsageError):
    pass


class TraceError(HwpruneError):
    pass


class PlanError(HwpruneError):
    pass


class ProofError(HwpruneError):
    pass


class CompileError(HwpruneError):
    pass


class UnsupportedOperator(CompileError):
    pass


class MeasureError(HwpruneError):
    pass


class ArtifactError(HwpruneError):
    pass


class StoreError(HwpruneError):
    pass


class NoLatency(HwpruneError):
    pass


class Infeasible(Exception):
    """One candidate (a schedule, a width) is impossible. Never reaches the user."""
