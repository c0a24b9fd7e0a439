{{- define "standfast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "standfast.fullname" -}}
{{- $name := include "standfast.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of objects that have no namespace: two releases must not share them. */}}
{{- define "standfast.clusterName" -}}
{{- $name := include "standfast.fullname" . -}}
{{- if eq $name .Release.Namespace -}}{{ $name }}{{- else -}}{{ printf "%s-%s" .Release.Namespace $name }}{{- end -}}
{{- end -}}

{{- define "standfast.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "standfast.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "standfast.selectorLabels" -}}
app.kubernetes.io/name: {{ include "standfast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "standfast.labels" -}}
{{ include "standfast.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "standfast.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* As the operator reads them: group/version/Kind/plural, and where the selector is, if it is given. */}}
{{- define "standfast.scalableKinds" -}}
{{- $kinds := list -}}
{{- range .Values.scalableKinds -}}
{{- $path := ternary (printf ":%s" .selectorPath) "" (hasKey . "selectorPath") -}}
{{- $kinds = append $kinds (printf "%s/%s/%s/%s%s" .group .version .kind .plural $path) -}}
{{- end -}}
{{- join "," $kinds -}}
{{- end -}}
