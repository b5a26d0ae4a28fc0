"""The composition root: connects engine, data, checks and report to the training loop."""

from __future__ import annotations

from rescoldo.training.parts import Parts


def real_parts() -> Parts:
    """The engine and the data modules of this package, for the training loop."""
    from rescoldo.base import open_base
    from rescoldo.base.tokenizer import save_tokenizer
    from rescoldo.data.forms import check_dataset, read_dataset
    from rescoldo.doctor.examine import preflight
    from rescoldo.doctor.rate import expected_rate
    from rescoldo.engine.calibrated import load_calibrated
    from rescoldo.engine.losses_before import LossesBefore
    from rescoldo.engine.model import evaluate_loss
    from rescoldo.engine.step import GradientStep
    from rescoldo.report.run_page import write_report
    from rescoldo.system.awake import awake

    return Parts(
        open_base=open_base,
        read_dataset=read_dataset,
        check_dataset=check_dataset,
        load_model=load_calibrated,
        gradient_step=GradientStep,
        evaluate_loss=evaluate_loss,
        losses_before=LossesBefore,
        save_tokenizer=save_tokenizer,
        preflight=preflight,
        stay_awake=awake,
        expected_rate=expected_rate,
        write_report=write_report,
    )
