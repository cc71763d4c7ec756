"""Results of a run, and facts of its data, as JSON files in its directory."""

from rayface.training.run_messages import RunMessages, Values

DATA = "data.json"
TEACHER = "teacher_sha256"  # in DATA
_OUTCOME = "outcome.json"
RESULT = "result.json"
EVALUATION = "evaluation.json"


class RunResults(RunMessages):
    """Results of a run: the workers' outcome, the driver's result, the last validation."""

    def read_data_facts(self) -> Values | None:
        """Return digest and counts of the training data; None before they are written."""
        return self._read_json(DATA)

    def write_data_facts(self, facts: Values) -> None:
        """Write digest and counts of the training data, and the digest of a teacher."""
        self._write_json(DATA, facts)

    def has_outcome(self) -> bool:
        """Return whether the workers have finished."""
        return self._exists(_OUTCOME)

    def read_outcome(self) -> Values:
        """Return the outcome that the workers wrote.

        Raises:
            FileNotFoundError: they have not finished.
        """
        return self._read_required(_OUTCOME)

    def write_outcome(self, outcome: Values) -> None:
        """Write the outcome, from which the driver makes the result; the workers' last file."""
        self._write_json(_OUTCOME, outcome)

    def delete_outcome(self) -> None:
        """Delete the outcome of an earlier session with fewer steps."""
        self._delete(_OUTCOME)

    def read_result(self) -> Values:
        """Return the result of the run, as `rayface train --json` prints it.

        Raises:
            FileNotFoundError: the run is not finished.
        """
        return self._read_required(RESULT)

    def write_result(self, result: Values) -> None:
        """Write the result; the driver's last file."""
        self._write_json(RESULT, result)

    def delete_results(self) -> None:
        """Delete outcome and result, which are then recreated from the last checkpoint."""
        self._delete(_OUTCOME)
        self._delete(RESULT)

    def read_evaluation(self) -> Values | None:
        """Return the last validation; None without one."""
        return self._read_json(EVALUATION)

    def write_evaluation(self, evaluation: Values) -> None:
        """Write the last validation."""
        self._write_json(EVALUATION, evaluation)
