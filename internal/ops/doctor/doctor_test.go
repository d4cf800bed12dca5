package doctor_test

import (
	"errors"
	"strings"
	"testing"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/service"
)

func TestReport_PrintsRemediesAndCounts(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := doctor.Report(&out, []doctor.Check{
		doctor.Passed("Postgres: version", "%d", 15),
		doctor.Warned("clock", "off\nby\x1b[31m 7 s", "set it"),
		doctor.Failed("NATS", "away", "start it"),
	})
	want := "pass  Postgres: version  15\n" +
		"warn  clock              off by\uFFFD[31m 7 s\n" +
		"                         → set it\n" +
		"fail  NATS               away\n" +
		"                         → start it\n" +
		"1 passed, 1 warnings, 1 failed.\n"
	if got := out.String(); got != want || !errors.Is(err, service.ErrActionRequired) {
		t.Errorf("Report = %v, want ErrActionRequired; printed\n%s\nwant\n%s", err, got, want)
	}
}
