"""The processes of a run, of which there is usually one."""


class Alone:
    """The processes of a run that has only one; `scale/team.py` has the same for several."""

    first = True                                 # this process writes the files and shows the bar
    launcher = "python"                          # starts the script

    def __str__(self):
        return ""

    def check(self, model_config, recipe):
        """UserError if they cannot be divided over the processes."""

    def spread(self, model):
        """The model, divided over all processes before its optimisers are made."""
        return model

    def finish(self, optimizers):
        """The optimisers, for a divided model."""
        return optimizers

    def own(self, tokens):
        """The rows of a batch (B, T+1) that this process trains on."""
        return tokens

    def any(self, flag):
        """Whether the flag is set in any process."""
        return flag


ALONE = Alone()
