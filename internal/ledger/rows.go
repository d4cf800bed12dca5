package ledger

import (
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool returns the connection pool, for the packages of internal/ops, which run their own statements.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// Skipped is an unreadable row that was left out of its batch.
type Skipped struct {
	Where string // operation, from a small set; also a metric label
	ID    string // first column, usually the key
	Err   error
}

// OnSkip sets the function that is called for each skipped row, from any goroutine. It must be set before db
// is used.
func (db *DB) OnSkip(report func(Skipped)) { db.onSkip = report }

func (db *DB) skip(where, id string, err error) {
	if db.onSkip != nil {
		db.onSkip(Skipped{Where: where, ID: id, Err: err})
	}
}

// row is the current row of pgx.Rows. Unlike pgx's own, its Scan leaves the rows open on failure, so that the
// remaining rows can be read.
type row struct{ pgx.Rows }

// Scan implements pgx.CollectableRow.
func (r row) Scan(fields ...any) error {
	return pgx.ScanRow(r.Conn().TypeMap(), r.FieldDescriptions(), r.RawValues(), fields...)
}

// id returns the row's first column, which is readable if its type is text.
func (r row) id() string {
	if values := r.RawValues(); len(values) > 0 {
		return storable(string(values[0]))
	}
	return ""
}

// Collect reads every row with scan. Rows that scan rejects are skipped.
func Collect[T any](db *DB, where string, rows pgx.Rows, scan pgx.RowToFunc[T]) (list []T, err error) {
	err = db.each(where, rows, func(r row) error {
		value, err := scan(r)
		if err == nil {
			list = append(list, value)
		}
		return err
	})
	return list, err
}

// ForEach scans every row into fields and calls handle. Rows that cannot be scanned, or that handle rejects,
// are skipped.
func (db *DB) ForEach(where string, rows pgx.Rows, fields []any, handle func() error) error {
	return db.each(where, rows, func(r row) error {
		if err := r.Scan(fields...); err != nil {
			return err
		}
		return handle()
	})
}

func (db *DB) each(where string, rows pgx.Rows, handle func(r row) error) error {
	defer rows.Close()
	for rows.Next() {
		r := row{rows}
		if err := handle(r); err != nil {
			db.skip(where, r.id(), err)
		}
	}
	return rows.Err()
}

// OrZero returns the value of a nullable column, or the zero value.
func OrZero[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}
