"""Errors that the user can mend."""


class UserError(Exception):
    """Wrong input: one sentence that says what is wrong and what to do. Printed as it is; exit code 2."""

    def __str__(self) -> str:
        # A DataLoader raises a worker's error anew with the worker's traceback in front of the sentence.
        return super().__str__().rsplit("UserError: ", 1)[-1].strip()
