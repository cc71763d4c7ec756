"""A search over a study on disk, without Ray."""

from rayface.tuning.search import StudySearch
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Objective, Spec, SweepConfig
from rayface.tuning.study import open_study

NAMES = Parameter(choices=("cosine", "constant"))
SEARCH = {"optim.lr": Parameter(low=0.01, high=1.0, log=True), "schedule.name": NAMES}
ACCURACY = Objective()


class Desk:
    """A search over a study on disk, with the trials that have ended."""

    def __init__(self, folder, *, path=None, search=SEARCH, objectives=(ACCURACY,), **sweep):
        self.spec = Spec(search=search, objectives=objectives, sweep=SweepConfig(**sweep))
        self.folder = folder
        self.study = open_study(self.spec, "test", f"sqlite:///{folder / 'study.db'}", total_steps=100)
        self.ended = []
        self.search = StudySearch(self.study, self.spec, path or folder, self.ended.append)

    def start(self, name):
        job = self.search.suggest(name)
        if isinstance(job, dict):
            (self.folder / "trials" / f"{job['trial']:04d}").mkdir(parents=True, exist_ok=True)
        return job

    def report(self, name, step, value):
        self.search.on_trial_result(name, {"state": "RUNNING", "step": step, "value": value})

    def complete(self, name, *values):
        self.search.on_trial_complete(name, {"state": "COMPLETE", "values": list(values), "seconds": 1.0})

    def states(self):
        return [trial.state.name for trial in self.study.get_trials()]
