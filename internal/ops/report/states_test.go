package report_test

import (
	"os"
	"strings"
	"testing"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// tableOf reads the Markdown table whose heading begins so: the heading's cells, then a row's each. Code marks are left out.
func tableOf(t *testing.T, text, heading string) (rows [][]string) {
	t.Helper()
	_, after, ok := strings.Cut(text, "\n| "+heading)
	if !ok {
		t.Fatalf("no table begins with %q", heading)
	}
	for line := range strings.SplitSeq("| "+heading+after, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		if strings.Trim(cells[0], "-") != "" {
			rows = append(rows, cells)
		}
	}
	return rows
}

// docs/states.md says what the code does.
func TestStatesDocument(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)

	var statuses []purchase.Status
	for _, row := range tableOf(t, text, "status |")[1:] {
		statuses = append(statuses, purchase.Status(row[0]))
	}
	for i, s := range purchase.Statuses() {
		if i >= len(statuses) || statuses[i] != s {
			t.Fatalf("the statuses are %v, the document has %v", purchase.Statuses(), statuses)
		}
	}

	for _, row := range tableOf(t, text, "reason |")[1:] {
		g := report.Group{Status: purchase.Status(row[1]), Reason: purchase.Reason(row[0])}
		if all := strings.HasPrefix(row[3], "one, some, all"); all != g.Replayable() {
			t.Errorf("%s (%s): replayed by %q", g.Status, g.Reason, row[3])
		}
	}

	t.Run("events", func(t *testing.T) { testEventsTable(t, tableOf(t, text, "recorded \\ proposed")) })
	t.Run("outcomes", func(t *testing.T) { testOutcomesTable(t, tableOf(t, text, "recorded \\ outcome")) })
}

// state reads a state's name; "paid" is each of those behind it.
func state(name string) (list [][2]string) {
	switch name {
	case "unknown":
		return [][2]string{{"", ""}}
	case "paid":
		return [][2]string{{"pending", ""}, {"published", ""}, {"retrying", ""}, {"delivered", ""}, {"dead", "refused"}, {"skipped", "no_consent"}, {"skipped", "test_purchase"}}
	}
	status, reason, _ := strings.Cut(strings.TrimSuffix(name, ")"), " (")
	return [][2]string{{status, reason}}
}

func testEventsTable(t *testing.T, rows [][]string) {
	t.Helper()
	if len(rows) != 7 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows[1:] {
		for i, cell := range row[1:] {
			for _, from := range state(row[0]) {
				for _, to := range state(rows[0][i+1]) {
					got := purchase.Advances(purchase.Status(from[0]), purchase.Reason(from[1]), purchase.Status(to[0]), purchase.Reason(to[1]))
					if got != (cell == "●") {
						t.Errorf("%v to %v: %v, the document has %q", from, to, got, cell)
					}
				}
			}
		}
	}
}

func testOutcomesTable(t *testing.T, rows [][]string) {
	t.Helper()
	if len(rows) != 7 {
		t.Fatalf("%d rows", len(rows))
	}
	const generation = 2
	for _, row := range rows[1:] {
		from := purchase.Status(row[0])
		for i, cell := range row[1:] {
			outcome, when, _ := strings.Cut(rows[0][i+1], ",")
			of := generation
			if when != "" {
				of--
			}
			outcomes := []purchase.Status{purchase.Status(outcome)}
			if outcome == "any other" {
				outcomes = []purchase.Status{purchase.StatusRetrying, purchase.StatusDead, purchase.StatusSkipped}
			}
			for _, o := range outcomes {
				if next, _ := purchase.Settle(from, generation, o, of); string(next) != cell {
					t.Errorf("%s, %s of generation %d: %s, the document has %q", from, o, of, next, cell)
				}
			}
		}
	}
}
