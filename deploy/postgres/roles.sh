# Run once, by the image's first start (/docker-entrypoint-initdb.d) or by hand as the schema's owner: makes the role that
# ingest runs as. It may log in and nothing else; `ingest migrate`, or ingest's start with MIGRATE_DATABASE_URL, grants it what
# the statements need. (This file is sourced by the image's shell.)
psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set=database="$POSTGRES_DB" --set=password="$INGEST_DATABASE_PASSWORD" <<'SQL'
CREATE ROLE ingest LOGIN PASSWORD :'password';
-- Postgres before 15 lets everybody create tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE TEMPORARY ON DATABASE :"database" FROM PUBLIC;
SQL
