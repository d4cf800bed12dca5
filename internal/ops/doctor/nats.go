package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/queue"
)

const (
	checkNATS    = "start it; check NATS_URL and the way there (DNS, firewall)"
	notAllowed   = "this user may not ask"
	provisionIt  = "run `ingest provision` with a user that may create it, or give ingest's own user that right"
	compareUsers = "give the user that right: compare the server's configuration " +
		"with deploy/nats/nats-server.conf"
)

// NATS checks the server, the user's rights, and the streams and consumers that the role may look at.
func NATS(ctx context.Context, c queue.Config, role string, s queue.StreamConfig) []Check {
	probe, err := queue.OpenProbe(c, role)
	if err != nil {
		return []Check{judgeNATS(err)}
	}
	defer probe.Close()
	required, optional, err := probe.MissingPermissions()
	checks := []Check{
		judgeNATSVersion(probe.Version()), judgeLine(probe.Server()), judgeRights(required, optional, err),
	}
	if role == queue.RoleWorker {
		for _, consumer := range probe.Consumers(ctx) {
			checks = append(checks, judgeConsumer(consumer))
			if consumer.ClockKnown {
				checks = append(checks, judgeNATSClock(consumer.ClockAhead))
			}
		}
		return checks
	}
	var missing int64
	for _, stream := range probe.Streams(ctx, s) {
		if errors.Is(stream.Err, queue.ErrMissing) {
			missing += stream.Wanted
		}
		checks = append(checks, judgeStream(stream))
	}
	for _, consumer := range probe.Consumers(ctx) {
		checks = append(checks, judgeConsumer(consumer))
	}
	storage, err := probe.Storage(ctx)
	return append(checks, judgeStorage(storage, missing, err))
}

func judgeNATS(err error) Check {
	const what = "NATS"
	switch {
	case errors.Is(err, queue.ErrCredentials):
		return Failed(what, err.Error(), "fix user and password in NATS_URL, or NATS_CREDS_FILE")
	case errors.Is(err, queue.ErrTLS):
		return Failed(what, err.Error(), "check tls:// in NATS_URL, NATS_CA_FILE, NATS_CERT_FILE, NATS_KEY_FILE, "+
			"and that no certificate has expired")
	}
	return Failed(what, "does not answer: "+err.Error(), checkNATS)
}

// judgeNATSVersion: a stream refuses a second message of a subject since 2.9.
func judgeNATSVersion(version string) Check {
	const what = "NATS"
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	switch {
	case errA != nil || errB != nil:
		return Warned(what, "answers, and does not say its version", "use nats-server 2.10 or newer")
	case a < 2 || a == 2 && b < 9:
		return Failed(what, "is nats-server "+version+", which is too old", "update it to 2.10 or newer")
	case a == 2 && b < 10:
		return Warned(what, "is nats-server "+version+", older than what is tested",
			"update it to 2.10 or newer when convenient")
	}
	return Passed(what, "nats-server %s answers", version)
}

func judgeLine(server string, encrypted bool) Check {
	const what = "NATS: line"
	host := ""
	if u, err := url.Parse(server); err == nil {
		host = u.Hostname()
	}
	ip := net.ParseIP(host)
	switch {
	case encrypted:
		return Passed(what, "encrypted")
	case host == "localhost" || ip != nil && ip.IsLoopback():
		return Passed(what, "on this machine")
	}
	return Warned(what, "password and hashed addresses go over the network as they are",
		"use TLS (deploy/nats/nats-server.conf), unless the network itself is private and encrypted")
}

func judgeRights(required, optional []string, err error) Check {
	const what = "NATS: rights"
	switch {
	case err != nil:
		return Failed(what, "they cannot be tried: "+err.Error(), checkNATS)
	case len(required) > 0:
		return Failed(what, "the user lacks "+strings.Join(required, ", "), compareUsers)
	case len(optional) > 0:
		return Warned(what, "the user has what it must have, and lacks "+strings.Join(optional, ", "), compareUsers)
	}
	return Passed(what, "the user has what it needs")
}

// judgeRequest explains why a stream or a consumer could not be read.
func judgeRequest(what string, err error) Check {
	switch {
	case errors.Is(err, queue.ErrMissing):
		return Warned(what, err.Error(), provisionIt)
	case errors.Is(err, queue.ErrNotPermitted):
		return Failed(what, notAllowed, compareUsers)
	case errors.Is(err, queue.ErrJetStreamOff):
		return Failed(what, err.Error(),
			"start nats-server with -js, or jetstream {} in its configuration, and enable it for the account")
	}
	return Failed(what, "cannot be asked: "+err.Error(), compareUsers)
}

// Fullness from which a stream, or the disk, is reported.
const (
	fairlyFull = 0.8
	nearlyFull = 0.95
)

func judgeStream(s queue.StreamState) Check {
	what := "NATS: stream " + s.Name
	if s.Err != nil {
		return judgeRequest(what, s.Err)
	}
	const drain = "see why workers do not drain it, or raise NATS_MAX_BYTES"
	found := fmt.Sprintf("%d messages, %d of %d MiB", s.Messages, s.Bytes>>20, s.MaxBytes>>20)
	full := 0.0
	if s.MaxBytes > 0 {
		full = float64(s.Bytes) / float64(s.MaxBytes)
	}
	switch {
	case full >= nearlyFull:
		return Failed(what, found+": nearly full, then purchases wait on the ledger", drain)
	case len(s.Differs) > 0:
		return Warned(what, found+"; not as it should be: "+strings.Join(s.Differs, ", "), provisionIt)
	case full >= fairlyFull:
		return Warned(what, found+": fairly full", drain)
	}
	return Passed(what, "%s", found)
}

func judgeConsumer(c queue.ConsumerState) Check {
	what := "NATS: consumer " + c.Name
	switch {
	case c.Err != nil:
		return judgeRequest(what, c.Err)
	case c.Differs:
		return Warned(what, "has other settings than it should", provisionIt)
	}
	return Passed(what, "%d messages wait, %d are being worked on or delayed", c.Waiting, c.Unacknowledged)
}

// judgeNATSClock: the worker counts ages by the server's clock, so that only a large difference matters.
func judgeNATSClock(ahead time.Duration) Check {
	const what = "NATS: clock"
	found := fmt.Sprintf("differs from this machine's by %s", ahead.Abs().Round(time.Second))
	switch {
	case ahead.Abs() > 10*time.Minute:
		return Failed(what, found, FollowTime)
	case ahead.Abs() > 10*time.Second:
		return Warned(what, found+"; ages are counted by the server's", FollowTime)
	}
	return Passed(what, "agrees with this machine's")
}

// judgeStorage compares what the account may store with the bytes of streams that are missing.
func judgeStorage(s queue.Storage, missing int64, err error) Check {
	const (
		what   = "NATS: disk"
		allow  = "let the user publish on $JS.API.INFO; keep NATS_MAX_BYTES and 2 GiB below the disk's size"
		remedy = "lower NATS_MAX_BYTES (the two other streams take 1 GiB each), " +
			"or raise the account's storage and max_file_store"
	)
	switch {
	case errors.Is(err, queue.ErrNotPermitted):
		return Warned(what, notAllowed, allow)
	case err != nil:
		return Warned(what, "the server does not say how much room there is", allow)
	}
	found := fmt.Sprintf("%d MiB used, %d MiB reserved", s.Used>>20, s.Reserved>>20)
	if s.Limit <= 0 {
		return Passed(what, "%s, the account has no limit of its own", found)
	}
	left := s.Limit - int64(max(s.Used, s.Reserved)) //nolint:gosec // bytes on a disk
	found += fmt.Sprintf(" of %d MiB", s.Limit>>20)
	switch {
	case missing > left:
		return Failed(what, found+fmt.Sprintf("; streams of %d MiB are still to be made", missing>>20), remedy)
	case float64(s.Used) > nearlyFull*float64(s.Limit):
		return Failed(what, found+": nearly full", remedy)
	}
	return Passed(what, "%s", found)
}
