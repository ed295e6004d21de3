"""What two families of processes hold in memory at their fullest."""

import threading

import psutil

_EVERY_S = 2.0


class Memory:
    """Looks every two seconds at this process's family, without the rival's, and at the rival's. Of
    what several processes share each counts its part (PSS). peaks: bytes, ours first."""

    def __init__(self, rival: int):
        self._rival = psutil.Process(rival)
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self.peaks = [0, 0]

    def __enter__(self) -> "Memory":
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S):
            theirs = _family(self._rival)
            ours = _family(psutil.Process()) - theirs
            held = [sum(map(_held, family)) for family in (ours, theirs)]
            self.peaks = list(map(max, self.peaks, held))


def _family(process: psutil.Process) -> set[psutil.Process]:
    try:
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0
