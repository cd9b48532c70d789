-- Dagster and MLflow have tables of the same names: each gets a database of its own.
create database mlflow;
