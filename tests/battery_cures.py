"""What a failure of the battery most likely means, and the cure, in a sentence each: printed with the failure."""

from __future__ import annotations

CURES = {
    "test_card_is_read_as_it_is_written": "The Card names a class that the file lacks, or its recipe has no `tiny` section: "
    "compare `methods=` with the classes below it, and add `tiny: {...}` to the recipe.",
    "test_every_preset_is_a_recipe": "A preset sets a key that the method or task does not have (any more): run `limbeck run "
    "NAME --preset PRESET --print-config`, which names it.",
    "test_resume_equals_uninterrupted": "Something that the method remembers between steps is not saved: keep it in a buffer of a "
    "role or return it from `state()`, change it in `observe` only, and draw randomness from `ctx.draws`.",
    "test_resume_equals_uninterrupted_wherever_it_stopped": "A stage that follows others starts from something they left in "
    "memory: let it read `ctx.artifact(...)` or a role's weights, and set values in `begin`, structure in `setup`.",
    "test_same_seed_same_weights_other_seed_other_weights": "A draw does not come from the run's seed: use `ctx.draws(...)` "
    "instead of torch's or NumPy's global generators, and no order of sets or of the file system.",
    "test_accumulating_changes_nothing": "A term takes a mean over the micro-batch, or compares its items with each other: give one "
    "value an item to Term, and let statistics of the batch go through `yield Share(...)` or `yield Gather(...)`; or declare "
    '`exceptions={"accumulation": why}`. With Adam set `options: {eps: 0.001}` in the recipe\'s `tiny`.',
    "test_every_term_reaches_its_roles_and_no_other": "A term's graph reaches a role that is not in its `to=`, or none that is: "
    "detach what only serves as a target, or name the role in `Term(..., to=(...))`.",
    "test_items_leave_every_role_alone": "The work of an item runs a network in training mode: a forward pass then moves its "
    "statistics; call it through `ctx.signal` or `ctx.call`, which put it in evaluation mode.",
    "test_frozen_stays_trained_moves": "A parameter is in an optimiser and no term reaches it, or one that stands still was moved: "
    'name its role in `optim`, set `requires_grad_(False)`, or declare `exceptions={"moves": why}`.',
    "test_non_finite_stops_before_the_step": "A term hides a NaN from the engine: return it in the Term's values, neither through "
    "`nan_to_num` nor through `.item()`.",
    "test_at_equality": "With student equal to teacher the term is not what `at_equality` promises: check temperatures and targets, or "
    "write the sentence that says why it is not zero.",
    "test_weight_zero_is_the_student_alone": "The overrides in `baseline` leave something of the method on (a query, a schedule, "
    "another optimiser): name it there too.",
    "test_low_precision_keeps_terms_in_float32": "A statistic is computed in bfloat16: use `signal.logits`, or `.float()` activations "
    "before sums, exponentials and divisions.",
    "test_a_batch_of_one_runs": "Something is taken over the items of a batch (a variance, other items): handle one item, or declare "
    '`exceptions={"batch_of_one": why}`.',
    "test_recipe_round_trip": "A setting does not come back from YAML as it was: annotate it with a plain type (list, not tuple keys, no "
    "objects) and give it a default of that type.",
    "test_whole_run_and_its_folder": "The whole run from recipe to report fails: type `limbeck run NAME --tiny` and read its message.",
    "test_no_add_on_is_there_unasked": "The recipe has `objectives:` or `queries:` of its own: what belongs to the paper goes into the "
    "method's step.",
    "test_two_processes_follow_one": "As for accumulation: something depends on the items that one process sees; with Adam set "
    "`options: {eps: 0.001}` under `train` and `teach` in `tiny`.",
}
"""Test of the battery -> likely cause and cure."""
