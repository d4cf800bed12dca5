package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/secret"
)

var errEmptySecret = errors.New("the file is empty")

// FollowSecret polls a secret's file until ctx ends and passes each new content to changed. File watchers
// miss a mounted secret, which is replaced by switching a link. An unreadable or empty file is passed to
// failed once and changes nothing: a write may be in progress.
func FollowSecret(ctx context.Context, path string, current secret.String, interval time.Duration,
	changed func(secret.String), failed func(error),
) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var failures logsafe.Changes
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		value, err := readSecret(path)
		switch {
		case err != nil && failures.Failed(err):
			failed(err)
		case err == nil:
			failures = logsafe.Changes{}
			if value != current {
				current = value
				changed(value)
			}
		}
	}
}

func readSecret(path string) (secret.String, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", errEmptySecret
	}
	return secret.String(value), nil
}
