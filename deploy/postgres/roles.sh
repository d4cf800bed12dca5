# Run once, by the image's first start (/docker-entrypoint-initdb.d) or by hand as the schema's owner: makes the role that
# ingest runs as. It may log in and nothing else; `ingest migrate` grants it what the statements need. psql 14
# or newer reads the password from the environment: an argument would be visible to everybody who lists
# processes. (The image's shell sources this file.)
psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set=database="$POSTGRES_DB" <<'SQL'
\getenv password INGEST_DATABASE_PASSWORD
CREATE ROLE ingest LOGIN PASSWORD :'password';
-- Postgres before 15 lets everybody create tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE TEMPORARY ON DATABASE :"database" FROM PUBLIC;
SQL
