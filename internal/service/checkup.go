package service

import (
	"fmt"
	"io"

	"purchase-relay/internal/ops/doctor"
)

// Configuration is the check of a configuration: one for each of its problems.
func Configuration(problems []string) (checks []doctor.Check) {
	for _, p := range problems {
		checks = append(checks, doctor.Failed("configuration", p, "mend it; --help says what each setting means"))
	}
	if len(checks) == 0 {
		checks = append(checks, doctor.Passed("configuration", "every setting can be used"))
	}
	return checks
}

// Concluded prints checks. The error is ErrLeft (exit status 3) where something has to be mended.
func Concluded(out io.Writer, checks []doctor.Check) error {
	doctor.Print(out, checks)
	if n := doctor.Count(checks, doctor.Fail); n > 0 {
		return fmt.Errorf("%w: %d to mend", ErrLeft, n)
	}
	return nil
}
