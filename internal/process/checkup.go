package process

import (
	"fmt"
	"io"

	"purchase-relay/internal/checkup"
)

// Configuration is the check of a configuration: one for each of its problems.
func Configuration(problems []string) (checks []checkup.Check) {
	for _, p := range problems {
		checks = append(checks, checkup.Failed("configuration", p, "mend it; --help says what each setting means"))
	}
	if len(checks) == 0 {
		checks = append(checks, checkup.Passed("configuration", "every setting can be used"))
	}
	return checks
}

// Concluded prints checks. The error is ErrLeft (exit status 3) where something has to be mended.
func Concluded(out io.Writer, checks []checkup.Check) error {
	checkup.Print(out, checks)
	if n := checkup.Count(checks, checkup.Fail); n > 0 {
		return fmt.Errorf("%w: %d to mend", ErrLeft, n)
	}
	return nil
}
