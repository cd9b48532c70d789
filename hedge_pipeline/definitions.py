"""The code location: assets, checks, jobs, the sensor and the resources.

Built when it is loaded; importing this module reads and does nothing.
"""

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The whole system; settings are read here and a bad one stops the start in one line."""
    from hedge_pipeline import assets, checks, jobs
    from hedge_pipeline.resources import loop
    from hedge_pipeline.sensors.retraining import build_retraining_sensor
    from hedge_pipeline.settings import load_settings

    source, store, registry = (
        loop.SourceResource(),
        loop.StoreResource(),
        loop.RegistryResource(),
    )
    return dg.Definitions(
        assets=dg.load_assets_from_package_module(assets),
        asset_checks=dg.load_asset_checks_from_package_module(checks),
        jobs=[jobs.train_model],
        sensors=[build_retraining_sensor(load_settings().retrain_check_interval)],
        resources={
            "loop": loop.LoopResource(source=source, store=store, registry=registry),
        },
        executor=dg.in_process_executor,
    )
