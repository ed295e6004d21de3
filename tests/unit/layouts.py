"""Where engines and ranks go on two machines of four GPUs; worked out by hand."""

from dataclasses import dataclass

NODES = (4, 4)


@dataclass(frozen=True)
class Row:
    """on_engines, on_ranks: the machine of each, 0 is the driver's"""

    placement: str
    engines: int
    parallel: int
    ranks: int
    on_engines: str
    on_ranks: str

    def __str__(self) -> str:
        return f"{self.placement}-{self.engines}x{self.parallel}-{self.ranks}"


PLACED = [
    # What one machine holds stays on it.
    Row("disaggregated", 1, 1, 1, "0", "0"),
    Row("disaggregated", 1, 2, 2, "0", "00"),
    Row("auto", 2, 1, 2, "00", "00"),
    # The learner has as few machines as will do.
    Row("disaggregated", 4, 1, 4, "1111", "0000"),
    Row("disaggregated", 1, 4, 4, "1", "0000"),
    Row("disaggregated", 2, 2, 4, "11", "0000"),
    Row("disaggregated", 2, 1, 6, "11", "000011"),
    Row("auto", 1, 2, 6, "1", "000011"),
    Row("disaggregated", 3, 2, 2, "011", "00"),
    Row("disaggregated", 7, 1, 1, "0001111", "0"),
    # Each engine takes three of a machine's four, and what is left must do for the ranks.
    Row("disaggregated", 1, 3, 5, "1", "00001"),
    Row("disaggregated", 2, 3, 2, "01", "01"),
    # One GPU for a pair.
    Row("colocated", 3, 1, 3, "000", "000"),
    Row("colocated", 6, 1, 6, "000011", "000011"),
    Row("auto", 8, 1, 8, "00001111", "00001111"),
]

REFUSED = [
    (
        Row("disaggregated", 1, 5, 1, "", ""),
        "rollout.tensor_parallel is 5, and no machine has more than 4 GPUs",
    ),
    (
        Row("disaggregated", 4, 1, 5, "", ""),
        "needs 9 GPUs, and there are 8 on 2 machines (4 + 4)",
    ),
    (Row("colocated", 9, 1, 9, "", ""), "and there are 8 on 2 machines (4 + 4): set"),
    (Row("auto", 1, 1, 8, "", ""), "auto on 8 GPUs is colocated and shares each GPU"),
]
