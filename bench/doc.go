// Package bench measures graft from outside, as a program that embeds it would.
package bench
