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

// FollowSecret polls a secret's file until ctx ends and calls changed for each new content. It polls because
// Kubernetes replaces a mounted secret by switching a symbolic link, which file watchers miss. It calls
// failed once for an unreadable or empty file, and keeps the secret: a write may be in progress.
func FollowSecret(
	ctx context.Context, path string, current secret.String, interval time.Duration,
	changed func(secret.String), failed func(error),
) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var failures logsafe.Changes
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
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
		return "", fmt.Errorf("read the file: %w", errors.Unwrap(err))
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", errEmptySecret
	}
	return secret.String(value), nil
}
