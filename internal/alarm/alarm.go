// Package alarm sees to it that people are told of what needs them.
package alarm
