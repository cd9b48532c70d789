"""The code location: assets, checks, jobs, schedules, the sensor and the resources.

Dagster calls `defs` when it loads the location; importing this module reads and does nothing.
"""

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The whole system; settings are read here and a bad one stops the start in one line."""
    from hedge_pipeline import assets, checks, jobs, schedules
    from hedge_pipeline.resources import loop
    from hedge_pipeline.sensors.retraining import build_retraining_sensor
    from hedge_pipeline.settings import load_settings

    settings = load_settings()
    return dg.Definitions(
        assets=dg.load_assets_from_package_module(assets),
        asset_checks=dg.load_asset_checks_from_package_module(checks),
        jobs=[
            jobs.poll_market,
            jobs.close_session,
            jobs.train_model,
            jobs.bootstrap,
            jobs.housekeeping,
        ],
        schedules=schedules.build_schedules(settings),
        sensors=[
            build_retraining_sensor(settings.retrain_check_interval, autostart=settings.autostart)
        ],
        resources={
            "loop": loop.LoopResource(
                source=loop.SourceResource(),
                store=loop.StoreResource(),
                registry=loop.RegistryResource(),
            ),
        },
        executor=dg.in_process_executor,
    )
