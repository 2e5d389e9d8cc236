#!/bin/sh
# The team's tracking server: MLflow keeps the runs in Postgres and passes the artifacts on, so that users
# need only its address.
#
#   HUSAI_STORE      the database: postgresql://USER:PASSWORD@HOST/DATABASE
#   HUSAI_ARTIFACTS  where artifacts are kept: a folder, or s3://BUCKET/FOLDER
#   HUSAI_NAMES      host names that clients may use, separated by commas: mlflow.example.org:5000
#   HUSAI_BIND       the address it listens on (127.0.0.1), and HUSAI_PORT the port (5000)
set -eu
: "${HUSAI_STORE:?give the database, as postgresql://USER:PASSWORD@HOST/DATABASE}"
: "${HUSAI_ARTIFACTS:?give the folder of artifacts, or s3://BUCKET/FOLDER}"
# as variables, not as arguments: a list of processes shows arguments, and this address has a password
export MLFLOW_BACKEND_STORE_URI="$HUSAI_STORE" MLFLOW_ARTIFACTS_DESTINATION="$HUSAI_ARTIFACTS"
# MLflow's workers for GenAI jobs would be seven more processes, which nothing here uses
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
exec mlflow server --serve-artifacts --workers 2 \
    --host "${HUSAI_BIND:-127.0.0.1}" --port "${HUSAI_PORT:-5000}" \
    ${HUSAI_NAMES:+--allowed-hosts "$HUSAI_NAMES"}
