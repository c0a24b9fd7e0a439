//! Logs: one line an event, as JSON or as text, on standard error. Everything that concerns one object is logged inside
//! [`object_span`], so that each line names it. JSON lines are flat: `timestamp`, `level`, `target`, `message`, then the
//! fields of the spans and of the event, so `kind`, `namespace` and `name` can be searched for.

use std::fmt::Debug;

use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value};
use tracing::{
    Event, Span, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::{JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::args::LogFormat;

/// Why nothing can be logged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The directives are not understood.
    #[error(
        "--log {directives:?} is not a level (error, warn, info, debug, trace) or a list such as info,kube=debug: {reason}"
    )]
    Directives {
        /// What was asked for.
        directives: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process.
pub fn init(format: LogFormat, directives: &str) -> Result<(), LogError> {
    let filter = filter(directives)?;
    let layer = layer(format, std::io::stderr);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(|_| LogError::Twice)
}

fn filter(directives: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Directives { directives: directives.to_owned(), reason };
    if directives.trim().is_empty() {
        return Err(wrong("it is empty".into()));
    }
    // A word that is no level would be taken for the name of a module, and nothing would be logged.
    let level = |part: &str| part.trim().parse::<tracing::level_filters::LevelFilter>().is_ok();
    if let Some(part) = directives.split(',').find(|part| !part.contains(['=', '[']) && !level(part)) {
        return Err(wrong(format!("{part:?} is not a level")));
    }
    EnvFilter::try_new(directives).map_err(|error| wrong(error.to_string()))
}

fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Json => layer.fmt_fields(JsonFields::new()).event_format(FlatJson).boxed(),
        LogFormat::Text => layer.boxed(),
    }
}

/// tracing-subscriber's own JSON nests the fields of spans and gives each span a `name`, which hides the object's.
struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    JsonFields: for<'writer> FormatFields<'writer>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let Some(formatted) = extensions.get::<FormattedFields<JsonFields>>() else { continue };
            fields.0.extend(serde_json::from_str::<Map<String, Value>>(&formatted.fields).unwrap_or_default());
        }
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("timestamp".into(), Timestamp::now().to_string().into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("target".into(), event.metadata().target().into());
        for (name, value) in fields.0 {
            line.entry(name).or_insert(value);
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

/// The span in which one object is worked on: `kind`, `namespace`, `name`.
///
/// ```
/// # use standfast_operator::telemetry::object_span;
/// use tracing::Instrument;
/// # async fn work(halt: &standfast_crds::v1alpha1::TradingHalt) {
/// async { tracing::info!("latched") }.instrument(object_span(halt)).await;
/// # }
/// ```
pub fn object_span<K: Resource<DynamicType = ()>>(object: &K) -> Span {
    named_span(&K::kind(&()), object.namespace().as_deref().unwrap_or_default(), &object.name_any())
}

/// [`object_span`] for an object that is known by name only.
pub fn named_span(kind: &str, namespace: &str, name: &str) -> Span {
    tracing::error_span!("object", kind, namespace, name)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use k8s_openapi::api::core::v1::Pod;
    use rstest::rstest;
    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, directives: &str, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = layer(format, move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter(directives).unwrap()));
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("mm-0".into());
        pod.metadata.namespace = Some("bots".into());
        pod
    }

    #[test]
    fn json_lines_carry_the_object_and_the_fields() {
        let text = logged(LogFormat::Json, "info", || {
            let _span = object_span(&pod()).entered();
            tracing::info!(replicas = 3, "stopped");
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "stopped");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["replicas"], 3);
        assert_eq!(line["target"], "standfast_operator::telemetry::tests");
        line["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(line["kind"], "Pod");
        assert_eq!(line["namespace"], "bots");
        assert_eq!(line["name"], "mm-0");
    }

    #[test]
    fn an_event_wins_over_its_spans_and_an_inner_span_over_an_outer_one() {
        let text = logged(LogFormat::Json, "info", || {
            let _outer = named_span("TradingHalt", "bots", "night").entered();
            let _inner = tracing::info_span!("call", venue = "paper", name = "mm-0").entered();
            tracing::info!(name = "mm-1", level = "mine", line = "a\nb\"", "stopped");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["kind"], "TradingHalt");
        assert_eq!(line["venue"], "paper");
        assert_eq!(line["name"], "mm-1");
        assert_eq!(line["line"], "a\nb\"");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_lines_carry_the_object_without_colours() {
        let text = logged(LogFormat::Text, "info", || {
            let _span = named_span("TradingHalt", "bots", "night").entered();
            tracing::warn!("unverified");
        });
        assert!(text.contains(r#"object{kind="TradingHalt" namespace="bots" name="night"}"#), "{text}");
        assert!(text.contains("unverified") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn errors_name_their_object_at_the_lowest_level_too() {
        let text = logged(LogFormat::Json, "error", || {
            let _span = object_span(&pod()).entered();
            tracing::info!("not shown");
            tracing::error!("shown");
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["name"]), (&"shown".into(), &"mm-0".into()));
    }

    #[rstest]
    #[case("")]
    #[case("loud")]
    #[case("info,verbose")]
    #[case("info,kube=loud")]
    fn unknown_levels_are_refused(#[case] directives: &str) {
        let error = filter(directives).unwrap_err().to_string();
        assert!(error.contains("--log") && error.contains("error, warn, info, debug, trace"), "{error}");
    }

    #[test]
    fn levels_may_differ_by_module() {
        let text = logged(LogFormat::Text, "warn,standfast_operator=debug", || {
            tracing::debug!("ours");
            tracing::info!(target: "kube", "theirs");
        });
        assert!(text.contains("ours") && !text.contains("theirs"), "{text}");
    }
}
