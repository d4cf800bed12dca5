# Creates the role that ingest runs as: once, by the image's first start (/docker-entrypoint-initdb.d sources
# this file) or by hand as the schema's owner. The role may only log in; `ingest migrate` grants what the
# statements need. psql 14 or newer reads the password from the environment: every local user can list
# arguments.
psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set=database="$POSTGRES_DB" <<'SQL'
\getenv password INGEST_DATABASE_PASSWORD
CREATE ROLE ingest LOGIN PASSWORD :'password';
-- Postgres before 15 lets every role create tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE TEMPORARY ON DATABASE :"database" FROM PUBLIC;
SQL
