"""Settings from environment variables, with smaller defaults for QUICK=1."""
import os


class Settings:
    """`program` is the measured binary, `work` the temporary folder of this run."""

    def __init__(self, program, work):
        self.program, self.work = program, work
        self.quick = os.environ.get("QUICK", "0") not in ("", "0")
        self.rounds = self.number("ROUNDS", 5, 2)
        self.seconds = self.number("SECONDS_EACH", 1, 1)
        self.settle = self.number("SETTLE", 2, 1)
        self.idle = self.number("IDLE", 10, 2)
        self.after = self.number("AFTER", 30, 5)
        self.fan_outs = self.number("FAN_OUTS", 3, 1)

    def text(self, name, default, quick=None):
        return os.environ.get(name) or (quick if self.quick and quick is not None else default)

    def number(self, name, default, quick=None):
        return int(self.text(name, default, quick))

    def words(self, name, default, quick=None):
        return self.text(name, default, quick).split()
