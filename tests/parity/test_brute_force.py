"""Our model, batched and stacked, against loops over tokens, heads and experts in float64."""

import pytest
import torch

from minidsv3 import hf
from tests.parity import brute_force
from tests.parity.models import CASES, Case, randomised, relative

LENGTH = 24                                              # beyond V3's YaRN window of 16
NAMES = ["V3", "Moonlight", "Kimi-K2", "kept groups used up, all scores negative",
         "tied, no query latent", "YaRN with unequal mscales"]
CASES_WITH_MTP = {name: Case(CASES[name].config.replace(num_nextn_predict_layers=1),
                             CASES[name].biases) for name in NAMES}
some_cases = pytest.mark.parametrize("case", CASES_WITH_MTP.values(), ids=NAMES)


def ours_and_brute(case, tables):
    """Main and MTP logits of one sequence, (T, V) and (T-1, V), from ours and from the loops."""
    model = randomised(case.config, torch.float64, case.biases).requires_grad_(False)
    tokens = torch.randint(case.config.vocab_size, (LENGTH,))
    hidden, _ = model.hidden_states(tokens[None])
    (state,), _ = model.mtp_states(hidden, tokens[None])
    arguments = hf.released_tensors(model), case.config, tokens.tolist(), tables
    return ((model.lm_head(hidden)[0], brute_force.main_logits(*arguments)),
            (model.lm_head(state)[0], brute_force.mtp_logits(*arguments)))


@some_cases
def test_main_and_mtp_logits_equal_the_loops(case):
    """Oracle: brute_force, with the float32 rotary tables that the model is defined with."""
    for ours, expected in ours_and_brute(case, torch.float32):
        assert relative(ours, expected) <= 1e-11


def test_rotary_tables_of_float64_would_move_the_logits_by_a_rounding_of_float32():
    """Oracle: brute_force with float64 tables.

    Rounding an angle of up to 24 radians to float32 changes it by at most 24 * 6e-8 = 1.4e-6, and
    the logits change by a similar amount.
    """
    for ours, exact in ours_and_brute(CASES_WITH_MTP["V3"], torch.float64):
        assert 1e-11 < relative(ours, exact) <= 5e-6
