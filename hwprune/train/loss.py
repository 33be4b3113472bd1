"""What training minimizes: the labels' cross-entropy, mixed with what the dense network says."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation(student: Tensor, teacher: Tensor | None, y: Tensor, temperature: float, soft_share: float) -> Tensor:
    """``(1 - s) CE(student, y) + s T^2 KL(teacher/T || student/T)``, a scalar in nats.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2; the
    factor T^2 keeps the two gradients of one size when T changes. Without a teacher it is the cross-entropy alone.

    Parameters
    ----------
    student, teacher : logits [N, classes]; the teacher's carry no gradient.
    y : labels int64 [N].
    """
    hard = F.cross_entropy(student, y)
    if teacher is None or soft_share == 0:
        return hard
    soft = F.kl_div(F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1),
                    reduction="batchmean", log_target=True)
    return (1 - soft_share) * hard + soft_share * temperature**2 * soft
