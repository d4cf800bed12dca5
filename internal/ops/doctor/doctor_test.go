package doctor_test

import (
	"strings"
	"testing"

	"purchase-relay/internal/ops/doctor"
)

func TestPrint(t *testing.T) {
	t.Parallel()
	checks := []doctor.Check{
		doctor.Passed("Postgres: version", "%d", 15), doctor.Warned("clock", "off\nby\x1b[31m 7 s", "set it"), doctor.Failed("NATS", "away", "start it"),
	}
	var out strings.Builder
	doctor.Print(&out, checks)
	want := "pass  Postgres: version  15\n" +
		"warn  clock              off by\uFFFD[31m 7 s\n" +
		"                         → set it\n" +
		"fail  NATS               away\n" +
		"                         → start it\n" +
		"1 passed, 1 to look at, 1 to mend.\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
